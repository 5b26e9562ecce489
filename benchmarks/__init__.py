"""Benchmarks: each script measures one claim. See README.md."""
