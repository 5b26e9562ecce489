"""What runs are asked afterwards, as numbers only."""
