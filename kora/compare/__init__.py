"""Comparison of runs: compatibility check, statistics, tables, page and pictures."""
