"""Evaluation protocols: one file per dataset with its readers, and the registry that finds them."""
