"""Find which channels of a model can go, and which must go together, by following labels through a forward pass.

Read the modules in the order in which it happens. `tracing` runs the model and follows every operation by `rules`.
`classes` solves what the trace learned. `wiring` turns the solution into coupled groups. `fitting`, with `trials`,
`changes` and `twins`, finds the sizes that code has written down. `checking` compares numbers, and `replay` makes
random numbers and decisions the same in what it compares. `torch_groups` gives criteria the groups in torch-pruning's
form. `coupling` puts all of it behind one class. Nothing is cut here: `hfp.reconstruct.surgery` records what
torch-pruning cuts.
"""
