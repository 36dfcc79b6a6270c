"""Recording what torch-pruning cuts.

`recording` repeats every cut on tensors that hold their own indices; `layer_norm` puts one cut of torch-pruning right.
This room follows what torch-pruning does. What could be removed at all is found by `hfp.reconstruct.coupling`.
"""
