"""`splitwire cloud`: serve.py runs the server."""
