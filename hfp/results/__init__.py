"""What a run leaves behind, and how it is read again.

`folder` has the files of a run and `checkpoint` the state that it goes on from. `report` and `plots` show a run. `load`
reads a finished run, `classifier` predicts with it, and `submodels` extracts clients' models, whose full model a
`description` can make again.
"""
