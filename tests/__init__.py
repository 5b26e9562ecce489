"""Tests; they mirror the paths of the code."""
