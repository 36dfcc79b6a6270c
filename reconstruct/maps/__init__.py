"""Which entries of a full model a compact model holds, and sums over many such parts.

Read `index_map` first. `plan` holds a decision per coupled group, `factor` turns what surgery left into a map,
`aggregation` and `coverage` merge states, `optimizers` lets momentum follow, `rows` moves memory, `tables` shows maps.
"""
