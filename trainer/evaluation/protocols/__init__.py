"""Evaluation protocols by name, the files they read, and published results."""
