"""`splitwire cloud`: serve.py runs the server, token.py changes the file of tokens."""
