"""Measuring a model: embeddings of datasets, retrieval and its intervals, protocols, further tests, the report."""
