"""Training with batches larger than a device: gathering over processes, gradient caching, and sharded weights."""
