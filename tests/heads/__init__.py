"""Tests of the heads; they mirror the paths of the code."""
