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

from collections.abc import Iterable

import torch
from torch import Tensor

from hfp.pruning.repair.constants import Constant
from hfp.pruning.repair.following import Place, Run
from hfp.pruning.repair.paired import Pair
from hfp.pruning.repair.products import Product
from hfp.pruning.repair.reading import Reading
from hfp.pruning.repair.weights import Cut, WeightPart


class Shift:
    """The mean that the outputs of products with one weight, or with a part of one, lack.

    Args:
        name: the weight's name.
        constant: what takes it up.
    """

    def __init__(self, name: str, constant: Constant) -> None:
        self.name, self.constant = name, constant
        self._sum: Tensor | float = 0.0
        self._samples = 0

    def add(self, shift: Tensor, samples: int) -> None:
        """Add what the outputs of a batch lack, `[channels]`."""
        self._sum, self._samples = self._sum + shift * samples, self._samples + samples

    def mean(self) -> Tensor:
        """Return the mean of what the outputs lack, `[channels]`."""
        return torch.as_tensor(self._sum) / self._samples


def compensated(pair: Pair, reading: Reading, batches: Iterable[object]) -> tuple[list[Shift], set[str], int]:
    """Compensate the compact model in place.

    While a batch runs, each product's outputs get that batch's own shift, so that later layers see compensated inputs.

    Returns:
        What was done, the names of the weights whose mean is not finite, which stay as they were, and the number of
            samples.
    """
    found: dict[WeightPart, Shift] = {}
    samples = 0

    def keep(product: Product, cut: Cut, output: Tensor, _: int) -> Tensor:
        return _mean(product.target(product.arranged(output), cut), len(product.out_dims))

    for expected, size, run_compact in pair.over(batches, keep, reading.wanted):

        def meet(place: Place, product: Product, run: Run) -> Tensor:
            output, constant = run(), reading.constants.get(place)
            if place not in expected or constant is None:  # noqa: B023
                return output
            mean = _mean(product.arranged(output), len(product.out_dims))
            shift = expected[place] - mean  # noqa: B023
            found.setdefault(pair.weights.part(product.weight), Shift(place[0], constant)).add(shift, size)  # noqa: B023
            return product.shifted(output, shift.view(product.groups, -1))

        run_compact(meet)
        samples += size
    done = [shift for shift in found.values() if bool(torch.isfinite(shift.mean()).all())]
    for shift in done:
        shift.constant.put(shift.mean())
    return done, {shift.name for shift in found.values() if shift not in done}, samples


def _mean(arranged: Tensor, channels: int) -> Tensor:
    """Return the mean over all rows, `[channels]`, in float64."""
    return arranged.flatten(-channels).flatten(0, -2).to(torch.float64).mean(0)
