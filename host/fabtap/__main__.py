"""`python -m fabtap` is the command `fabtap`."""
from fabtap.cli import main

main()
