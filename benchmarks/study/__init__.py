"""Does it learn? The papers' claims on a drawn world in which everything is known; see `STUDY.md`."""
