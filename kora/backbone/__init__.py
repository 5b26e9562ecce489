"""The frozen vision transformer: how it is built, what it reads, where an adapter may act on it."""
