"""Say which layers the channels of a coupled group run through, and which operations tie them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from hfp.layers.products import PRODUCTS, owner_of, weight_dims
from hfp.reconstruct.coupling.rules.labels import Array, Line
from hfp.reconstruct.coupling.wiring import CoupledGroup, Wiring

WRITES, READS, CARRIES = "writes", "reads", "carries"


@dataclass(frozen=True)
class Member:
    """A layer that holds channels of a coupled group.

    Args:
        layer: the module's name, or the parameter's where no layer of PyTorch's holds it.
        role: "writes" (the channels are outputs of the layer), "reads" (they are its inputs) or "carries" (a norm, a
            scale or another parameter has entries for them).
        indices: how many of the layer's indices belong to the group.
        size: how many it has in all along this dimension.
    """

    layer: str
    role: str
    indices: int
    size: int


def members(wiring: Wiring, group: CoupledGroup) -> tuple[Member, ...]:
    """Return the layers that a group's channels run through, in the order of the model, each once per role."""
    inside = _inside(wiring, group)
    found: dict[tuple[str, str], Member] = {}
    for name, lines in wiring.trace.tensors.items():
        if "num_batches_tracked" in name:
            continue
        layer, module = _owner(wiring.model, name)
        for dim, line in enumerate(lines):
            count = 0 if line is None else int(inside[wiring.classes.of[line]].sum())
            if line is not None and count:
                role = _role(module, name, dim)
                found.setdefault((layer, role), Member(layer, role, count, len(line)))
    return tuple(found.values())


def ties(wiring: Wiring, group: CoupledGroup) -> tuple[str, ...]:
    """Return the operations that make channels of different layers go together, such as "add in layer1.0"."""
    inside = _inside(wiring, group)
    found: dict[str, None] = {}
    for call in wiring.trace.calls.values():
        module, operation, _ = call.key
        if isinstance(getattr(wiring.model.get_submodule(module), "weight", None), nn.Parameter):
            continue  # a layer that reads the channels, or carries them
        lines = [line for lines in call.inputs for line in lines if _is_inside(line, inside, wiring)]
        if len({line.tobytes() for line in lines if line is not None}) > 1:
            found.setdefault(f"{operation} in {module or 'the model'}")
    return tuple(found)


def _inside(wiring: Wiring, group: CoupledGroup) -> np.ndarray:
    """Return for every class whether it is a channel of the group."""
    inside = np.zeros(wiring.trace.labels.count, dtype=bool)
    inside[list(group.classes)] = True
    return inside


def _is_inside(line: Line, inside: Array, wiring: Wiring) -> bool:
    return line is not None and bool(inside[wiring.classes.of[line]].any())


def _owner(model: nn.Module, tensor: str) -> tuple[str, nn.Module]:
    """Return the layer that a tensor belongs to, or the tensor's own name where its module is made of other modules."""
    path, key = owner_of(tensor)
    module = model.get_submodule(path)
    made_of = [name for name, _ in module.named_children() if name != "parametrizations"]
    return (path if path and not made_of else tensor), module


def _role(module: nn.Module, tensor: str, dim: int) -> str:
    if isinstance(module, PRODUCTS):
        return READS if dim == weight_dims(module)[1] and not tensor.endswith("bias") else WRITES
    return WRITES if isinstance(module, nn.Embedding) else CARRIES
