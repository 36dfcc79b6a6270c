"""Recording what torch-pruning cuts."""
