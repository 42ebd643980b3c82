"""Changes that make a network fit for the cut: older operators, constants, outputs, detectors, half precision."""
