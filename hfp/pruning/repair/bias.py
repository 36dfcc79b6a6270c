r"""Bias compensation puts the mean of what removed channels gave a layer into the layer's constant.

In the order of the forward pass, every layer that lost inputs gets \(b \leftarrow b + E[y^{full} - y^{compact}]\) per
output channel, the mean over samples and positions (so that the borders of padded convolutions count as they occur),
with the layers before it already compensated. Where the inputs that are left are as they were, this is
\(\sum_{removed} E[x] w\). A layer without a bias gives it to the running mean of the batch-norm layer that alone reads
it, with the sign turned.

Cost: a forward pass of both models. Source: mean replacement of removed units, Ye et al., arXiv 1802.00124; matching
means in order, Nagel et al., ICCV 2019, section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from hfp.pruning.repair.constants import Constant
from hfp.pruning.repair.paired import over_both
from hfp.pruning.repair.readers import Reader
from hfp.pruning.repair.report import LayerRepair


def compensate(
    full: nn.Module, compact: nn.Module, layers: list[Reader], places: Mapping[str, Constant], batches: Iterable[Any]
) -> tuple[list[LayerRepair], int]:
    """Repair `layers` of the compact model in place; returns what was done and the number of samples."""
    found, samples = shifts(full, compact, layers, batches)
    for name, shift in found.items():
        places[name].add(shift)
    return [LayerRepair(name, places[name].name) for name in found], samples


def shifts(
    full: nn.Module, compact: nn.Module, layers: list[Reader], batches: Iterable[Any]
) -> tuple[dict[str, Tensor], int]:
    """Measure what each layer's outputs lack in the mean.

    While a batch runs, each layer's outputs get that batch's own shift, so that later layers see compensated inputs.

    Returns:
        Layer -> the mean that is missing, `[out]` in float64; and the number of samples.
    """
    sums: dict[str, Tensor] = {}
    samples = 0
    for expected, size, run_compact in over_both(full, compact, layers, batches, _mean):
        with ExitStack() as hooks:
            for layer in layers:
                shifted = _Shifted(layer, expected, size, sums)
                hooks.callback(layer.compact.register_forward_hook(shifted).remove)
            run_compact()
        samples += size
    return {name: total / samples for name, total in sums.items()}, samples


class _Shifted:
    """A hook that gives a layer's outputs the mean that they should have, and adds up the shifts."""

    def __init__(self, layer: Reader, expected: Mapping[str, Tensor], size: int, sums: dict[str, Tensor]) -> None:
        self._layer, self._expected, self._size, self._sums = layer, expected, size, sums

    def __call__(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        name = self._layer.name
        shift = self._expected[name] - _mean(self._layer, output)
        self._sums[name] = self._sums.get(name, torch.zeros_like(shift)) + self._size * shift
        return self._layer.shifted(output, shift)


def _mean(layer: Reader, output: Tensor) -> Tensor:
    return output.movedim(layer.dim, -1).flatten(0, -2).to(torch.float64).mean(0)
