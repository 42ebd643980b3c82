"""`splitwire export`, and the options for pictures, which `splitwire plan` shares."""
