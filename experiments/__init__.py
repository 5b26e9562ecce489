"""Forms that are tried, outside of the package: docs/research/composition.md has the results."""
