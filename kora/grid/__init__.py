"""`kora grid`: the runs of one file, each once."""
