"""What the answers are worth: classification, detection, segmentation, agreement; intervals."""
