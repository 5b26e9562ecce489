"""`kora tune`: the search for settings."""
