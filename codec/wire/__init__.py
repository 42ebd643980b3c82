"""What crosses the link: frames, the sizes in them, and replies."""
