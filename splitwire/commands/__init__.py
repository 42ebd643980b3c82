"""The commands: thin, typed functions over the packages; `splitwire/cli.py` registers them."""
