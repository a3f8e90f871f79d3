"""A page in the browser to try one or two models on: for this machine, and as a Space on the Hub."""
