"""Tests of the experiments; they mirror the paths of the code."""
