"""Search a folder of images."""
