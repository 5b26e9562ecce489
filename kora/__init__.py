"""KoRA: honest experiments with adapters for frozen vision transformers."""

__version__ = "0.1.0"
