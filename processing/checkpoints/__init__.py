"""Loading checkpoints: models, adapters, devices, and fingerprints of weights."""
