"""Numbers about trained models, without files and pictures."""
