"""Find the best place to cut: costs, devices, links."""
