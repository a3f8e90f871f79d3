"""Making datasets of pairs and captions: shards that survive being killed, and what fills them."""
