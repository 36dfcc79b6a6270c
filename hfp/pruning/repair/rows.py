"""Make a layer's inputs and outputs the rows of a linear regression, one row per sample and position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hfp.layers.patches import windows
from hfp.layers.products import channel_dim, groups_of, is_plain

_FEWEST = 4096
"""How many rows of a batch are used, or twice the columns if that is more. More would cost more than a forward pass."""


def supported(layer: nn.Module) -> bool:
    """Return whether the layer is a plain product of its inputs and weights."""
    return is_plain(layer) and "weight" in layer._parameters  # not one that is computed from others


@dataclass(frozen=True)
class Chosen:
    """The rows of a batch that are used.

    Args:
        places: for each dimension, samples first and positions then, an index per row, `[rows]`.
    """

    places: tuple[Tensor, ...]

    def outputs(self, layer: nn.Module, output: Tensor) -> Tensor:
        """Select the rows of an output, as `[groups, rows, out / groups]`."""
        rows = output.movedim(channel_dim(layer), -1)[self.places]
        return rows.unflatten(1, (groups_of(layer), -1)).movedim(1, 0)

    def inputs(self, layer: nn.Module, entering: Tensor) -> Tensor:
        """Select the rows of an input, `[groups, rows, in / groups * kernel]`, in the order of the weight's entries."""
        if not isinstance(layer, _ConvNd):
            return entering[self.places][None]
        return _patches(layer, entering, self.places).unflatten(1, (layer.groups, -1)).flatten(2).movedim(1, 0)


def choose(layer: nn.Module, output: Tensor, columns: int, seed: int) -> Chosen:
    """Choose rows of a batch; where there are more than needed, `seed` draws them without replacement."""
    dims = (output.shape[0], *output.shape[2:]) if isinstance(layer, _ConvNd) else output.shape[:-1]
    total, most = int(torch.Size(dims).numel()), max(_FEWEST, 2 * columns)
    flat = torch.arange(total)
    if total > most:
        flat = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:most]
    return Chosen(tuple(part.to(output.device) for part in torch.unravel_index(flat, dims)))


def as_rows(layer: nn.Module, weight: Tensor) -> Tensor:
    """Reshape a weight to `[groups, out / groups, in / groups * kernel]`."""
    return weight.flatten(1).unflatten(0, (groups_of(layer), -1))


def _patches(layer: _ConvNd, entering: Tensor, places: tuple[Tensor, ...]) -> Tensor:
    """Take what the kernel lies on at some places, `[rows, in, *kernel]`; it is a view until the rows are picked."""
    return windows(layer, entering).movedim(1, len(places))[places]
