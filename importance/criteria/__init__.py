"""Criteria, one a file."""
