"""Pages and figures that explain, inspect, and compare."""
