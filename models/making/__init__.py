"""Maintainers' code: train the networks of the package, and write their model cards."""
