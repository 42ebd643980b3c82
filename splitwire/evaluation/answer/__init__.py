"""The results of an evaluation, and the answer from them: standings, verdict, choice of an operating point, BD-rate."""
