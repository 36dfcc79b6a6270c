"""Pruning one model: in which order channels go, how far a budget leads, and what is reported and stored."""
