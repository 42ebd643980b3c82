"""Many networks: their cuts, and the whole way from the export to the answers."""
