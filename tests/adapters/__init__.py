"""Tests of the strategies; they mirror the paths of the code."""
