"""Where the pure core meets the drivers that main.py hands in."""
