"""A fit: the command line, checkpoints, resume, and the record that a run leaves."""
