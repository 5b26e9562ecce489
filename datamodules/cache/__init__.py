"""Data that is decoded or computed once, and then mapped into memory."""
