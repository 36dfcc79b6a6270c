"""FIARSE's gradients: training moves magnitudes away from the threshold that decides what a submodel keeps.

The mask of a submodel depends on the weights that it masks. Its derivative is taken to be that of a smooth step
(straight through, arXiv 2407.19389). The gradient of a kept magnitude ``n`` then counts ``1 + 2 θ n / (n + θ)²`` times:
1.5 times at the threshold ``θ``, and once far above it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hfp.errors import InputError
from hfp.layers.products import groups_of
from hfp.methods.blocks.filters import filters_of
from hfp.methods.blocks.masked import MASK, MaskedGradients
from hfp.methods.blocks.sparse import Masks
from hfp.methods.interface.values import State
from hfp.reconstruct import Coupling, IndexMap
from hfp.training.local_step import Objective

THRESHOLD, CHANNEL = "threshold", "channel/"


@dataclass(frozen=True, eq=False)
class FilterRows:
    """Which channel each filter makes, of all weights that write the channels of coupled groups (`filters_of`).

    `channels` has for a weight's name the number of the channel that each of its filters makes, counted over all
    groups, and `total` for those that make none; `dims` the dimension along which filters lie. `first` is the number of
    each group's first channel.
    """

    channels: Mapping[str, Tensor]
    dims: Mapping[str, int]
    first: Mapping[str, int]
    total: int

    @classmethod
    def of(cls, groups: Coupling, model: nn.Module) -> FilterRows:
        """Those of a full model.

        Raises:
            InputError: a transposed convolution has groups, whose filters do not lie along one dimension; or no weights
                write channels.
        """
        first, total = {}, 0
        for name, size in groups.sizes.items():
            first[name], total = total, total + size
        channels: dict[str, Tensor] = {}
        dims: dict[str, int] = {}
        group, own_names = groups.groups_of(model), dict(model.named_parameters())
        for name in groups.names:
            for member, weight, tensor, slot in filters_of(group(name)):
                if weight not in own_names:
                    continue
                if slot.grouped and groups_of(member.layer) > 1:
                    raise InputError(
                        f"fiarse can't keep channels of {member.name}, a transposed convolution of "
                        f"{groups_of(member.layer)} groups; use its option structured=False, or another method"
                    )
                dims[weight] = slot.dim
                own = channels.setdefault(weight, torch.full((tensor.shape[slot.dim],), total))
                own[member.indices] = first[name] + member.positions
        if not channels:
            raise InputError(
                "fiarse finds no weights that write the channels of this model; use its option structured=False, or "
                "another method"
            )
        return cls(channels, dims, first, total)

    def inside(self, index_map: IndexMap) -> FilterRows:
        """Those of a compact model; channels keep their numbers."""
        kept = {name: index_map.tensors[name].kept[self.dims[name]] for name in self.channels}
        rows = {name: own if kept[name] is None else own[kept[name]] for name, own in self.channels.items()}
        return FilterRows(rows, self.dims, self.first, self.total)

    def sums(self, entries: Mapping[str, Tensor]) -> Tensor:
        """Values of single weights, summed over each channel's filters, `[total + 1]`; the last are of no channel."""
        first = next(iter(entries.values()))
        found = first.new_zeros(self.total + 1)
        for name, own in self.channels.items():
            rows = entries[name].movedim(self.dims[name], 0).reshape(len(own), -1).sum(1)
            found.index_add_(0, own.to(found.device), rows)
        return found

    def norms(self, weights: State) -> Tensor:
        """The Euclidean norm of each channel's filters, `[total]`."""
        return self.sums({name: weights[name].square() for name in self.channels}).sqrt()[:-1]

    def by_group(self, values: Tensor) -> dict[str, Tensor]:
        """Values of channels `[total]` by coupled group."""
        starts = [*self.first.values(), self.total]
        sizes = [after - before for before, after in zip(starts, starts[1:], strict=False)]
        return dict(zip(self.first, values.split(sizes), strict=True))


class ChannelPush(Objective):
    """Cross-entropy; the part of a gradient along its channel's filters counts ``1 + 2 θ n / (n + θ)²`` times.

    Args:
        rows: the filters of the compact model that is trained.
        thresholds: ``θ`` of each channel, `[total]`.
        device: the device of the model.
    """

    def __init__(self, rows: FilterRows, thresholds: Tensor, device: torch.device) -> None:
        self._rows = rows
        self.tensors = {CHANNEL + name: own.to(device) for name, own in rows.channels.items()}
        self.tensors |= {THRESHOLD: torch.cat([thresholds, thresholds.new_zeros(1)]).to(device)}

    def constants(self) -> tuple[object, ...]:
        """Where the filters lie; which channels they make is among the tensors."""
        return (self._rows.total, *self._rows.dims.items())

    def gradients(self, model: nn.Module) -> None:
        """Scale the radial part of each channel's gradient."""
        parameters = dict(model.named_parameters())
        rows = FilterRows(
            {name: self.tensors[CHANNEL + name] for name in self._rows.channels},
            self._rows.dims,
            self._rows.first,
            self._rows.total,
        )
        weights = {name: parameters[name].detach() for name in rows.channels}
        found = ((name, parameters[name].grad) for name in rows.channels)
        gradients = {name: gradient for name, gradient in found if gradient is not None}
        if not gradients:
            return
        # a frozen filter counts for the norm alone
        along = rows.sums({name: weight * gradients.get(name, 0) for name, weight in weights.items()})
        square = rows.sums({name: weight.square() for name, weight in weights.items()})
        push = push_factor(square.sqrt(), self.tensors[THRESHOLD].to(square)) - 1
        push = torch.where(square > 0, push * along / square.clamp(min=torch.finfo(square.dtype).tiny), 0)
        for name, gradient in gradients.items():
            shape = [1] * weights[name].dim()
            shape[rows.dims[name]] = -1
            gradient.add_(push[rows.channels[name]].view(shape) * weights[name])


class EntryPush(MaskedGradients):
    """Cross-entropy under a mask; the gradient of an active weight counts ``1 + 2 θ |w| / (|w| + θ)²`` times."""

    def __init__(self, masks: Masks, threshold: Tensor, device: torch.device) -> None:
        super().__init__(masks, device)
        self.tensors = {**self.tensors, THRESHOLD: threshold.to(device)}

    def gradients(self, model: nn.Module) -> None:
        """Clear the gradients of weights that are not active, and scale the others."""
        super().gradients(model)
        for name, parameter in model.named_parameters():
            if MASK + name in self.tensors and parameter.grad is not None:
                parameter.grad *= push_factor(parameter.detach().abs(), self.tensors[THRESHOLD].to(parameter))


def push_factor(magnitude: Tensor, threshold: Tensor) -> Tensor:
    """``1 + 2 θ n / (n + θ)²``, and 1 where both are 0."""
    total = (magnitude + threshold).square()
    return 1 + torch.where(total > 0, 2 * threshold * magnitude / total.clamp(min=torch.finfo(total.dtype).tiny), 0)
