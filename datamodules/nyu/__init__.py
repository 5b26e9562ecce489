"""NYU Depth V2: its layouts, splits, files and their compact copy."""
