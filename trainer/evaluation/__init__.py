"""Measuring a model: embeddings of data sets, retrieval and its intervals, protocols, further tests, the report."""
