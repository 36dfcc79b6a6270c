"""Record what the projections inside torch's own multi-head attention read.

That attention calls no layers for them, so hooks on layers see nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

Record = Callable[[str, str, Tensor], None]
"""Called with a layer's name, "in" or "out", and the tensor `[samples, tokens, channels]` whose gradient is wanted."""
READING = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""The parameters whose dimension 1 reads the channels of the attention's inputs."""


@contextmanager
def recording_attention(model: nn.Module, alias: Callable[[Tensor], Tensor], record: Record) -> Iterator[None]:
    """Record the attention's inputs and what its output projection reads, while open.

    The inputs are recorded under the attention's name, the others under the output projection's. Attention runs without
    its fused path, which torch only takes where nothing is differentiated.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward
    }
    catcher = _Catcher(found, alias, record)
    handles = [
        module.register_forward_pre_hook(catcher.inputs(name), with_kwargs=True) for name, module in found.items()
    ]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with mock.patch.object(functional, "linear", catcher.linear):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()


class _Catcher:
    def __init__(self, modules: dict[str, nn.MultiheadAttention], alias: Any, record: Record) -> None:
        self._alias, self._record = alias, record
        self._original = functional.linear
        weights = {f"{name}.out_proj": module.out_proj.weight for name, module in modules.items()}
        self._weights = weights  # a computed one would else be gone, and another tensor could get its id
        self._projections = {id(weight): name for name, weight in weights.items()}
        self._batch: dict[str, int] = {}

    def inputs(self, name: str) -> Any:
        """Return a hook that gives query, key and value gradients of their own."""

        def hook(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            names = ("query", "key", "value")
            given = dict(zip(names, args, strict=False)) | {key: kwargs[key] for key in names if key in kwargs}
            for key, width in zip(names, (module.embed_dim, module.kdim, module.vdim), strict=True):
                x = given[key]
                if x.dim() == 3 and width == module.embed_dim:
                    x = self._alias(x if module.batch_first else x.transpose(0, 1))
                    self._record(name, "in", x)
                    given[key] = x if module.batch_first else x.transpose(0, 1)
            query = given["query"]
            self._batch[f"{name}.out_proj"] = query.shape[0 if module.batch_first else 1] if query.dim() == 3 else 1
            return (*given.values(), *args[3:]), {key: kwargs[key] for key in kwargs if key not in names}

        return hook

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute `functional.linear`, and record the rows `[tokens * samples, channels]` of an output projection."""
        name = self._projections.get(id(weight))
        if name is None:
            return self._original(x, weight, bias)
        rows = self._alias(self._by_sample(name, x))
        self._record(name, "in", rows)
        output = self._original(rows, weight, bias)
        self._record(name, "out", output)
        return output.transpose(0, 1).reshape(len(x), -1)

    def _by_sample(self, name: str, x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, self._batch[name])).transpose(0, 1)
