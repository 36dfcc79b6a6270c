"""Find the layers of a compact model that lost inputs, and so can be repaired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hfp.layers.products import PRODUCTS, channel_dim, weight_dims
from hfp.reconstruct import IndexMap


@dataclass(frozen=True)
class Reader:
    """A layer that lost inputs.

    Args:
        name: its name in both models.
        full: the layer of the full model.
        compact: the layer of the compact model.
        kept: the indices of the full layer's outputs that are left, `[out]`; None where all are.
    """

    name: str
    full: nn.Module
    compact: nn.Module
    kept: Tensor | None

    def target(self, output: Tensor) -> Tensor:
        """Select from the full layer's output what the compact layer should give."""
        return output if self.kept is None else output.index_select(self.dim, self.kept.to(output.device))

    @property
    def dim(self) -> int:
        """The dimension of the outputs that counts channels."""
        return channel_dim(self.compact)

    def shifted(self, output: Tensor, shift: Tensor) -> Tensor:
        """Add a constant per channel, `[out]`, to outputs."""
        return output + shift.to(output).view([-1] + [1] * (output.dim() - 2 if self.dim == 1 else 0))


def readers(full: nn.Module, compact: nn.Module, index_map: IndexMap) -> list[Reader]:
    """List the convolutions and linear layers whose weights lost inputs, in the model's order."""
    parents = dict(full.named_modules())
    found = []
    for name, module in compact.named_modules():
        cut = index_map.tensors.get(f"{name}.weight" if name else "weight")
        if isinstance(module, PRODUCTS) and cut is not None:
            out, entering = weight_dims(module)
            if cut.kept[entering] is not None:
                found.append(Reader(name, parents[name], module, cut.kept[out]))
    return found


def left_alone(model: nn.Module, layers: list[Reader], run: Callable[[], Any]) -> dict[str, str]:
    """Say why no repair can work on some layers.

    Args:
        model: the compact model.
        layers: those that lost inputs.
        run: a function that runs the compact model once.

    Returns:
        Layer -> the reason; layers that can be repaired are left out.
    """
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    with counted({layer.name: layer.compact for layer in layers}) as calls:
        run()
    found = {}
    for layer in layers:
        if any(owners[id(p)] > 1 for p in layer.compact.parameters(recurse=False)):
            found[layer.name] = "other layers share its weights"
        elif calls[layer.name] != 1:
            times = "is not called as a layer" if not calls[layer.name] else f"is called {calls[layer.name]} times"
            found[layer.name] = f"it {times} in one pass"
    return found


@contextmanager
def counted(modules: dict[str, nn.Module]) -> Iterator[Counter[str]]:
    """Count calls of modules by name."""
    calls: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *_, name=name: calls.update([name])) for name, module in modules.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
