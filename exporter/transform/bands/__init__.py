"""The transform of one tensor: tiles and frequency bands, their statistics, and the matrices of each band."""
