"""Build datasets of pairs and of captions, in runs that can be killed and continued."""
