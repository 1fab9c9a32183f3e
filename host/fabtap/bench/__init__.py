"""The technician's bench: what is put on boards, and how."""
