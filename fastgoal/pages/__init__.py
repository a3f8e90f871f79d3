"""Pages and pictures that explain, inspect and compare."""
