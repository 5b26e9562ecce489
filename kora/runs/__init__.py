"""A run on disk: durable files, locks, results, and the runs of a config. Imports no torch."""
