"""The pair and its contenders over the data: batches, kept on disk; figures; features; times of the stages."""
