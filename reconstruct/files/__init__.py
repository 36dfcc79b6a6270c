"""Pruned models in files, without pickle."""
