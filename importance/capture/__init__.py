"""What one pass over data records, by layer.

`batches` runs somebody's model over somebody's batches and `state` leaves it as it was. `gates` records derivatives of
channels' gates (`norms` and `attention` are its special cases), `calls` and `squares` give gradients of weights per
sample (`per_sample` adds them up, `gradient` takes the mean alone, `moments` holds them), `factors` records Kronecker
factors, and `logits` finds a classifier's output.
"""
