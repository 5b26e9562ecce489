"""Forms that are tried and not part of the package: docs/research/composition.md has the results."""
