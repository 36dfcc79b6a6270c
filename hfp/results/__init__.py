"""What a run leaves behind, and how it is read again.

Read `simulate` first, which runs an experiment and keeps it in a folder. The observers `keeping` and `model_files`
write that `folder`, and `checkpoint` is the state that a run is resumed from. `report` and `plots` show a run. `load`
reads a finished run, `classifier` predicts with it, and `submodels` has clients' models, whose full model a
`description` can make again.
"""
