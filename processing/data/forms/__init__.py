"""The forms in which people keep images with captions, one file per form; `registry.load_source` reads all of them."""
