"""Comparing federated methods: what is run, what is kept of it, and the table, curves and page that come out."""
