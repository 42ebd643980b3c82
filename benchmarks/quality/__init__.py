"""Error, and effect on the answers, at equal rate or at equal bytes."""
