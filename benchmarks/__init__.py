"""What the project costs and what it brings: scripts, started from the repository root as `python -m benchmarks.NAME`."""
