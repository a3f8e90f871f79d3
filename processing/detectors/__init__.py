"""Detectors, which propose regions in addition to the five default ones, behind one `load_detector`."""
