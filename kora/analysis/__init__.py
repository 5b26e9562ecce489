"""Numbers about trained models and runs: arrays in, arrays out."""
