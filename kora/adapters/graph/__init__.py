"""What KoRA is made of: nodes, what composes them, and what brings the composition to the head."""
