"""Structured pruning that can be undone, shared and federated."""
