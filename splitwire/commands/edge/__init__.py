"""`splitwire edge`."""
