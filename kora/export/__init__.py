"""A finished run in other formats, and its predictions."""
