"""What is printed: tables, numbers as readers see them, one-line errors."""
