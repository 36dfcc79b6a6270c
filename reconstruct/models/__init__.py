"""Compact models: their modules, tensors and plain attributes."""
