"""Which channels of a model can go, and which must go together, found by following labels through a forward pass."""
