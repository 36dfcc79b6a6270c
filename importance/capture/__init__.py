"""Record, by layer, what a criterion needs from one pass over data.

`batches` runs somebody's model over somebody's batches, and `state` leaves the model as it was. `gates` records the
derivatives of channels' gates; `norms` and `attention` are its special cases. `calls` and `squares` give the gradients
of weights per sample: `per_sample` adds them up, `gradient` takes their mean alone, and `moments` holds the sums.
`factors` records Kronecker factors. `logits` finds a classifier's output.
"""
