"""Data on disk: images and captions as rows, and the datasets of local pairs that are made from them."""
