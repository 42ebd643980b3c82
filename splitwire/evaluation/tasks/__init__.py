"""The tasks: how good answers are, by classification, detection, segmentation or a user's metric; intervals."""
