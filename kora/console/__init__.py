"""Console output: tables, formatted numbers, one-line errors."""
