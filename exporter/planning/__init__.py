"""Where it pays to cut: costs, devices, links."""
