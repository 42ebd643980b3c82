"""Maintainers' code: what trains and describes the networks that ship with the package."""
