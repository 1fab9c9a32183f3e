"""One file per chip or port, named role_chip.py."""
