"""Criteria: what does removing a channel do to the loss? As torch-pruning Importance classes."""
