"""What lets a batch be larger than a device: gathering over processes, and gradient caching."""
