"""What a client does with its data.

Read `local_step` first: it trains a model on one client's data, and is the reference for what is faster. `static_step`
replays a step as a CUDA graph, and `shells` uses compact models again. `batch_norm` has the statistics that the global
model is tested with.
"""
