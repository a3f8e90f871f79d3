"""From rows to batches: the collator, the order of rows, and neighbors for batches of images that look alike."""
