"""From results to an answer: which setting, how much less, is it worth it."""
