"""Model and dataset cards, the handler of inference endpoints, and pushing to the Hub."""
