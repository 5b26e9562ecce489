"""Who logs a run: CSV and W&B."""
