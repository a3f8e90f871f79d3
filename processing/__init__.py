"""From an image and its caption to regions, sentences and the pairs among them (FLISM)."""
