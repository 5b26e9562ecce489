"""Where the runs of a grid or a search run: on this machine, or on those of a Ray cluster."""
