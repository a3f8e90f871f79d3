"""The demo: a web app to try one or two models, on this machine or as a Space on the Hub."""
