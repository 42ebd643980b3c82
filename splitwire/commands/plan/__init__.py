"""`splitwire plan`."""
