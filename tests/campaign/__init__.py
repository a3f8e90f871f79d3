"""Hostile and broken inputs, each with the answer that a user should get."""
