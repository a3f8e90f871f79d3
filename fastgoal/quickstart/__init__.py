"""The quickstart: a drawn world, a small CLIP that knows only short captions of it, and a tour of the whole path."""
