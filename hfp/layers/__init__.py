"""Facts about layer types that all packages share; this package imports none of them.

`table` says which dimension of which tensor of a layer holds its channels. `products` describes convolutions and linear
layers. `patches` cuts out what a convolution's kernel lies on. `calling` calls a model on example inputs.
"""
