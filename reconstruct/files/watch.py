"""A bound on what making a model may cost, where a file says which model to make."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MOST_OPERATIONS = 100_000


class TooMuch(Exception):
    """Making the model takes more operations, or more memory, than was allowed."""


class Watch(TorchDispatchMode):
    """Inside, PyTorch's operations are counted, and the bytes of the tensors that they make.

    Views and results of in-place operations make no tensor. Tensors on the meta device count as if they were real.

    Args:
        most_bytes: bytes that may be made on other devices than meta.
    """

    def __init__(self, most_bytes: int = 0) -> None:
        super().__init__()
        self.operations, self.made, self._most_bytes = 0, 0, most_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count it."""
        self.operations += 1
        if self.operations > MOST_OPERATIONS:
            raise TooMuch(f"making the model takes more than {MOST_OPERATIONS:,} operations")
        result = func(*args, **(kwargs or {}))
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in known:
                self.made += leaf.untyped_storage().nbytes()
                if not leaf.is_meta and self.made > self._most_bytes:
                    raise TooMuch(f"making the model takes more than {self._most_bytes:,} bytes")
        return result


def is_whole(model: torch.nn.Module) -> bool:
    """Whether none of a model's tensors is on the meta device, parameters, buffers and plain attributes alike."""
    held = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers(), *held))
