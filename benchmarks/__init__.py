"""What the project costs and what it brings: scripts, run from the repository root as `python -m benchmarks.NAME`."""
