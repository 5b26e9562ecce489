"""The tables of the KoRA paper: published, measured, honest."""
