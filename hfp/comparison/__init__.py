"""Compares federated methods on the same data, seeds and initial weights.

Read `definition` first, which says what is run. `runs` runs it, in the processes of `workers`, and keeps the results by
their `identity`. `table` turns results into rows, `charts` draws curves, and `page` puts all of it on one HTML page.
"""
