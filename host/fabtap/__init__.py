"""FabTap's host side: the collector, the books, the technician's tools and the simulator."""

__version__ = "0.1.0"
