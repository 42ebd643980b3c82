"""The commands: thin, typed functions over the rooms; `splitwire/cli.py` registers them."""
