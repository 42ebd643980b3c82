"""Names → where the network can be cut → two graphs, verified."""
