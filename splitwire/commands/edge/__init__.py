"""`splitwire edge run` and `splitwire edge profile`."""
