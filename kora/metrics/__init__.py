"""Depth metrics and their protocol."""
