"""Record what torch-pruning cuts.

`recording` repeats every cut on tensors that hold their own indices. `layer_norm` corrects one cut of torch-pruning.
`site` describes one way in which it cuts a layer. This package follows what torch-pruning does.
`hfp.reconstruct.coupling` finds what could be removed at all.
"""
