"""The command line: the first word, help and lists without torch, and small commands."""
