"""The quickstart: the whole workflow on drawn scenes, without a network."""
