"""Parts of KoRA: nodes, composers, and readouts that bring the composition to the head."""
