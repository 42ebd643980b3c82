"""`python -m splitwire`."""

from splitwire.cli import main

main()
