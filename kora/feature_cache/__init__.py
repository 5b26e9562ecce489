"""What is kept of the frozen pass, when, and in which file."""
