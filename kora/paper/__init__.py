"""The tables of the KoRA paper, with published numbers and those of our own runs."""
