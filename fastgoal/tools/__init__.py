"""Tools around a checkpoint: search, conversion, export."""
