"""Criteria, one per file; each docstring states its equation, its source and its cost in passes."""
