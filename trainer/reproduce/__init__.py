"""Reproduce rows of published tables: one YAML file per row, the commands that it runs, the checks, and the page."""
