"""Training and retrieval: the collator, the objectives, the Trainer subclass and R@K."""
