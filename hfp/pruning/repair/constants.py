"""Find where a constant can be added to a layer's outputs without a new parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from hfp.importance.capture.batches import mapped


@dataclass(frozen=True)
class Constant:
    """A tensor that takes up a constant per output channel.

    Args:
        name: what reports call it.
        tensor: what is added to, `[channels]`.
        sign: of what is added. A batch-norm layer subtracts its running mean, so one that alone reads a layer takes the
            constant with sign -1.
    """

    name: str
    tensor: Tensor
    sign: float

    def add(self, shift: Tensor) -> None:
        """Add `shift [channels]` to the layer's outputs, in place."""
        with torch.no_grad():
            self.tensor.add_(shift.to(self.tensor), alpha=self.sign)


def constants(model: nn.Module, layers: list[str], run: Callable[[], Any]) -> dict[str, Constant]:
    """Find where each layer's outputs take up a constant.

    Args:
        model: the compact model.
        layers: names of its layers.
        run: a function that runs the model once, in evaluation mode.

    Returns:
        Layer -> its place; layers that have none are left out.
    """
    modules = dict(model.named_modules())
    found = {}
    bare = []
    for name in layers:
        bias = modules[name]._parameters.get("bias")
        if bias is None:
            bare.append(name)
        else:
            found[name] = Constant("bias", bias, 1.0)
    readers = _batch_norm_readers(model, bare, run) if bare else {}
    for name, norm in readers.items():
        mean = modules[norm].running_mean
        assert isinstance(mean, Tensor)
        found[name] = Constant(norm, mean, -1.0)
    return found


def _batch_norm_readers(model: nn.Module, layers: list[str], run: Callable[[], Any]) -> dict[str, str]:
    """Map each layer to the batch-norm layer that alone reads its output and reads nothing else."""
    readers = _Readers()
    with _running(model, layers, readers), readers:
        output = run()
    returned: set[int] = set()
    mapped(output, lambda tensor: returned.add(id(tensor)))
    of_layer: dict[str, list[tuple[str, str]]] = {}
    for key, uses in readers.uses.items():
        name = readers.made[key][0]
        of_layer.setdefault(name, []).extend(uses if key not in returned else [*uses, ("", "returned")])
    modules = dict(model.named_modules())
    calls = readers.norm_calls
    return {
        name: uses[0][0]
        for name, uses in of_layer.items()
        if len(uses) == 1
        and uses[0][1] == "batch_norm"
        and isinstance(modules[uses[0][0]], _BatchNorm)
        and modules[uses[0][0]].running_mean is not None
        and calls.get(uses[0][0]) == 1
    }


@dataclass
class _Record:
    path: list[str] = field(default_factory=list)
    made: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    uses: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    norm_calls: dict[str, int] = field(default_factory=dict)


class _Readers(TorchFunctionMode, _Record):
    """Records which functions read the outputs of some layers, and in which module they were called."""

    def __init__(self) -> None:
        TorchFunctionMode.__init__(self)
        _Record.__init__(self)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        made: list[Tensor] = []
        mapped(result, made.append)
        if not made:
            return result  # a question about the shape, not a use
        where = self.path[-1] if self.path else ""
        name = getattr(function, "__name__", str(function))
        if name == "batch_norm":
            self.norm_calls[where] = self.norm_calls.get(where, 0) + 1
        mapped((args, kwargs or {}), lambda tensor: self._used(tensor, where, name))
        return result

    def _used(self, tensor: Tensor, where: str, name: str) -> None:
        if id(tensor) in self.made:
            self.uses.setdefault(id(tensor), []).append((where, name))


@contextmanager
def _running(model: nn.Module, layers: list[str], record: _Readers) -> Iterator[None]:
    """Keep the names of the running modules, and the outputs of `layers`, alive in the record."""
    handles = []

    def leave(name: str, output: Any) -> None:
        record.path.pop()
        if name in layers and isinstance(output, Tensor):
            record.made[id(output)] = (name, output)

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: record.path.append(name)))
        handles.append(module.register_forward_hook(lambda _, __, output, name=name: leave(name, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
