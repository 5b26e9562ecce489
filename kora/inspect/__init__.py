"""What the adapter of a finished run has become: `kora inspect` and `kora cka`."""
