"""See which weights a model multiplies with what it reads, and which it only adds, scales or looks up.

A parameter that is no layer's weight may do either. Channels that it is multiplied along in a matrix product are read
by it. All others pass on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hfp.layers.products import PRODUCTS

_MULTIPLYING = re.compile(r"mm|mv|matmul|dot|conv|(?<!bi)(?<!tri)linear|attention|rnn|lstm|gru|cdist|_trilinear")
"""What the names of PyTorch's operations that multiply matrices have in them."""


def passed_on(model: nn.Module, forward: Callable[[], Any], inputs: Any) -> frozenset[str]:
    """Return the parameters beside PyTorch's layers that a forward pass uses, but multiplies with nothing.

    Args:
        model: the model that runs.
        forward: what runs it.
        inputs: what it is called with, or a larger structure that holds it.

    Returns:
        The parameters' names, of those with two dimensions or more.
    """
    with _Watch(model, inputs) as watch:
        forward()
    known = (*PRODUCTS, nn.Embedding, nn.MultiheadAttention)
    return frozenset(
        name
        for name in watch.used - watch.multiplied
        if model.get_parameter(name).dim() > 1 and not isinstance(model.get_submodule(name.rpartition(".")[0]), known)
    )


class _Watch(TorchDispatchMode):
    """Collects, while open, the parameters that are used, and those that a factor of a matrix product comes from.

    A tensor is computed from parameters as long as nothing has entered it that depends on the model's inputs.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.used: set[str] = set()
        self.multiplied: set[str] = set()
        names: dict[int, set[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), set()).add(name)
        self._layers = {
            f"{path}.{name}" if path else name
            for path, layer in model.named_modules()
            if isinstance(layer, PRODUCTS)
            for name, _ in layer.named_parameters(recurse=False)
        }
        self._names: Mapping[int, set[str]] = names
        self._origin: dict[int, tuple[Tensor, frozenset[str] | None]] = {}  # tensors are kept, so that ids stay theirs
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor):
                self._origin[id(leaf)] = leaf, None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note what its results are computed from."""
        found = func(*args, **(kwargs or {}))
        entered = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        origins = [self._origin_of(tensor) for tensor in entered]
        self.used.update(*(origin for origin in origins if origin))
        known = [origin for origin in origins if origin is not None]
        origin = None if len(known) < len(origins) else frozenset[str]().union(*known)
        if func.namespace not in ("aten", "prim", "prims") or _MULTIPLYING.search(func.overloadpacket.__name__):
            # what a layer multiplies with its own weight is read by that layer, be it an input or a parameter
            if origin is None or not any(each and each <= self._layers for each in known):
                self.multiplied.update(*known)
            origin = None if origin is None else frozenset()
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._origin[id(leaf)] = leaf, origin
        return found

    def _origin_of(self, tensor: Tensor) -> frozenset[str] | None:
        """Return the parameters that a tensor is computed from; None where it depends on the inputs."""
        if id(tensor) in self._origin:
            return self._origin[id(tensor)][1]
        return frozenset(self._names.get(id(tensor), ()))
