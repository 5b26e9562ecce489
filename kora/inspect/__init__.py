"""What the adapter of a finished run has learned: `kora inspect` and `kora cka`."""
