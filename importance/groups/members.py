"""List the members of a torch-pruning group by name, and where each channel of theirs lies in the root."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from hfp.importance.capture.batches import unwrapped, wrapper_prefix
from hfp.importance.errors import CriterionError
from hfp.importance.layers import channel_sums, tensors_of
from hfp.layers.calling import modes_kept
from hfp.layers.products import computed_weight, groups_of, owner_of
from hfp.layers.table import Slot, direction_of


@dataclass(frozen=True)
class GroupLayer:
    """One layer (or bare parameter) of a group.

    Args:
        name: the module's or parameter's name in the model.
        layer: the module or parameter.
        direction: "in" or "out".
        indices: the layer's own channels, `[n]`.
        positions: the root's channel that each of them belongs to, `[n]`, as the scores count them.
        pruning_dim: the dimension of a bare parameter that is cut.
    """

    name: str
    layer: nn.Module | nn.Parameter
    direction: str
    indices: Tensor
    positions: Tensor
    pruning_dim: int

    def tensors(self) -> Iterator[tuple[str, Tensor, Slot]]:
        """Yield (name in the model, tensor, slot) for every tensor of this member that holds its channels."""
        if isinstance(self.layer, nn.Parameter):
            yield self.name, self.layer, Slot("", self.pruning_dim)
        else:
            yield from tensors_of(self.layer, self.direction, self.name)

    def add_to(self, scores: Tensor, per_channel: Tensor) -> None:
        """Add values of the layer's own channels `[..., channels]` to scores over the root's `[..., width]`, in place.

        Raises:
            CriterionError: torch-pruning put channels into the group that the layer does not have.
        """
        if int(self.indices.max()) >= per_channel.shape[-1]:
            raise CriterionError(
                f"the group holds channel {int(self.indices.max())} of {self.name!r} ({self.direction}), which has "
                f"{per_channel.shape[-1]}: torch-pruning traced it wrong, put the group's root into ignored_layers"
            )
        own = per_channel.index_select(-1, self.indices.to(per_channel.device))
        scores.index_add_(-1, self.positions.to(scores.device), own.to(scores))

    def sums(self, entries: Tensor, slot: Slot) -> Tensor:
        """Sum per-entry values of one of this member's tensors into the layer's own channels."""
        return channel_sums(entries, slot, groups_of(self.layer))

    def positions_in(self, shape: Sequence[int], slot: Slot) -> Tensor:
        """Return the root's channel that each entry of one of this member's tensors belongs to, or -1.

        The result's shape broadcasts to `shape`, which is the tensor's.
        """
        dim, groups = slot.dim % len(shape), groups_of(self.layer) if slot.grouped else 1
        position = torch.full((shape[dim] * groups // slot.blocks,), -1)
        position[self.indices] = self.positions
        if groups == 1:
            line = position[torch.arange(shape[dim]) % (shape[dim] // slot.blocks)]
            return line.view([-1 if each == dim else 1 for each in range(len(shape))])
        lines = position.view(groups, -1).repeat_interleave(shape[0] // groups, 0)
        return lines.view([shape[0], *(shape[dim] if each == dim else 1 for each in range(1, len(shape)))])


def scoring(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a function of a criterion and a group read weights without gradients, and without changing them.

    Weights that are computed are read as in evaluation mode, since spectral norm moves its vectors in training mode.
    """

    @wraps(function)
    def scored(criterion: Any, group: Any, *others: Any) -> Tensor:
        with torch.no_grad(), ExitStack() as stack:
            model = getattr(group._DG, "model", None)  # a group may stand alone
            for layer in () if model is None else model.modules():
                if "parametrizations" in layer._modules:
                    stack.enter_context(modes_kept(layer))
                    layer.eval()
            return function(criterion, group, *others)

    return scored


def width(group: Any) -> int:
    """Return how many channels of the root a group is about, which is how many scores it gets."""
    return len(group[0].idxs)


def root_name(group: Any) -> str:
    """Return the name of the group's root, for messages."""
    return _name(group, group[0].dep.target)


def members(group: Any) -> Iterator[GroupLayer]:
    """Yield the layers and bare parameters of a group, in its order, without operations that have no tensors.

    A parameter that the table has in a row of its module's type stands for that module, once.

    Raises:
        CriterionError: torch-pruning does not know which channel of the root an index belongs to.
    """
    position = _positions(group)
    seen: set[tuple[str, str]] = set()
    for item in group:
        node = item.dep.target
        if _is_operation(node.module):
            continue
        name = _name(group, node)
        roots = item.root_idxs
        if roots is None or len(roots) != len(item.idxs) or any(root is None for root in roots):
            raise CriterionError(f"torch-pruning lost track of which channels of {root_name(group)!r} feed {name!r}")
        direction = "out" if group._DG.is_out_channel_pruning_fn(item.dep.handler) else "in"
        indices = torch.tensor(list(item.idxs), dtype=torch.long)
        positions = position[torch.tensor(list(roots), dtype=torch.long)]
        owner = _owner(group, name, node) if isinstance(node.module, nn.Parameter) else None
        if owner is None:
            yield GroupLayer(name, node.module, direction, indices, positions, node.pruning_dim)
        elif (owner[0], owner[2]) not in seen:
            seen.add((owner[0], owner[2]))
            yield GroupLayer(*owner, indices, positions, -1)


def model_of(group: Any) -> nn.Module:
    """Return the model of a group, without torch.compile or a data-parallel wrapper."""
    return unwrapped(group._DG.model)


def parameter_name(group: Any, tensor: Tensor, name: str) -> str:
    """Return the name under which estimates of a tensor are kept.

    It is the first of a parameter's names, or `name` for any other tensor.
    """
    known = group._DG._param_to_name.get(tensor) if isinstance(tensor, nn.Parameter) else None
    return name if known is None else _inside(group, known)


def operations(group: Any) -> Iterator[str]:
    """Yield the autograd names of the operations in a group that hold no tensors, such as "SoftmaxBackward0"."""
    for item in group:
        module = item.dep.target.module
        if _is_operation(module):
            yield str(getattr(module, "_grad_fn", type(module).__name__))


def _positions(group: Any) -> Tensor:
    roots = torch.tensor(list(group[0].root_idxs), dtype=torch.long)
    position = torch.full((int(roots.max()) + 1,), -1, dtype=torch.long)
    position[roots] = torch.arange(len(roots))
    return position


def _owner(group: Any, name: str, node: Any) -> tuple[str, nn.Module, str] | None:
    """Return (name, module, direction) of the module that holds a parameter, if the table knows the place in its type.

    A parameter from which a weight is computed (weight norm, spectral norm, masks) stands for the weight.
    """
    path, attribute = owner_of(name)
    module = model_of(group).get_submodule(path)
    if isinstance(module, nn.MultiheadAttention):
        return None  # this module's parameters hold channels of several groups
    weight = computed_weight(module)
    if weight is not None and node.module.dim() == weight.dim():
        attribute = "weight"
    direction = direction_of(module, attribute, node.pruning_dim, node.module.dim())
    return None if direction is None else (path, module, direction)


def _is_operation(module: object) -> bool:
    return type(module).__module__ == "torch_pruning.ops"


def _name(group: Any, node: Any) -> str:
    names = group._DG._param_to_name if isinstance(node.module, nn.Parameter) else group._DG._module2name
    return _inside(group, names[node.module])


def _inside(group: Any, name: str) -> str:
    model = getattr(group._DG, "model", None)
    return name.removeprefix(wrapper_prefix(model)) if isinstance(model, nn.Module) else name
