"""Search in a folder of images."""
