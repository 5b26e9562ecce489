"""Many runs side by side: which go together, their statistics, tables, page and pictures."""
