"""One federated experiment: what is run, how it is set up, and its rounds."""
