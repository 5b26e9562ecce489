"""The feature cache: which features are kept, when, and in which file."""
