"""`splitwire demo`: the main job on real input, measured. The loopback demo is where the rooms are wired together."""
