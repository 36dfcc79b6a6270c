"""What criteria share: families (`diagonal`, `gated`, `linearised`) and how they are given data (`from_data`).

`accumulated` joins diagonal criteria and data, `joint` scores channels that go together, `scaled` makes scores of
different groups comparable.
"""
