"""Criteria, with one per file. Each docstring states its equation, its source and its cost in passes."""
