"""Detectors: what proposes regions beside the five default ones, all four kinds behind one `load_detector`."""
