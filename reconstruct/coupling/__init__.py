"""Which channels of a model can go, and which must go together, found by following labels through a forward pass.

The order in which it happens is the order to read: `tracing` runs the model and follows every operation by `rules`;
`classes` solves what the trace learned; `wiring` turns the solution into coupled groups; `fitting` (with `trials`,
`changes` and `twins`) finds the sizes that code has written down; `checking` compares numbers; `torch_groups` gives
criteria the groups in torch-pruning's form; `coupling` puts all of it behind one class. Nothing is cut here: what
torch-pruning cuts is recorded by `hfp.reconstruct.surgery`.
"""
