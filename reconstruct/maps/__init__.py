"""Maps say which entries of a full model a compact model holds, and states are merged by them.

Read `index_map` first. `plan` holds the decision per coupled group. `factor` turns what surgery left into a map.
`aggregation` and `coverage` merge states. `optimizers` cuts and embeds optimizer state. `rows` writes to scattered rows
of a tensor. `tables` shows maps to a person.
"""
