"""Synthetic indoor scenes, rendered on the CPU."""
