"""From rows to batches: the collator, the order of rows, and neighbours for batches of images that look alike."""
