"""What `examples/benchmarks/criteria.py` runs: networks, criteria, protocols, and the page of their results."""
