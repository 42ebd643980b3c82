"""What the task decides: damage and gradients on calibration inputs, thresholds, and the training of a transform."""
