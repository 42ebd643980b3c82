"""`splitwire export`, and the options for pictures that plan takes too."""
