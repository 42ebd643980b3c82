"""Data → statistics of the features at the cut."""
