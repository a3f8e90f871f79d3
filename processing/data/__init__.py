"""Data on disk: anybody's images and captions as rows, and the datasets of local pairs that are made of them."""
