"""Base classes that criteria share.

`diagonal`, `gated` and `linearised` are the families. `from_data` gives criteria their data, and `accumulated` joins it
with diagonal criteria. `joint` scores channels that go together. `scaled` makes scores of different groups comparable.
"""
