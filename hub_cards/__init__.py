"""What a model needs to be at home on the Hub: its card, the endpoint's handler, and the push itself."""
