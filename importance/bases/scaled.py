"""Make scores comparable between groups.

They are taken per multiply-accumulate that a channel costs, or relative to the scores of the channel's group.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from hfp.importance.capture.batches import mapped, samples_in, unwrapped
from hfp.importance.capture.state import untouched
from hfp.importance.errors import CriterionError
from hfp.importance.groups.members import members, root_name, scoring, width
from hfp.layers.calling import call
from hfp.layers.products import PRODUCTS, channel_dim, counts_of, multiplies_inputs, weight_entries

NORMALISATIONS = ("none", "mean", "max", "sum")

_INNER = ("accumulate", "reset", "samples", "state", "load")


class ScaledImportance(tp.importance.Importance):  # type: ignore[misc]
    r"""Scale another criterion's scores, so that they are comparable between groups.

    A score \(s_c\) is divided by the mean, the maximum or the sum of its group's scores, and then becomes \(s_c /
    m_c^{\gamma}\). \(m_c\) are the multiply-accumulates, for one sample, that go with channel `c`: its share of every
    convolution and linear layer that writes or reads it. A global ranking then removes the most operations per unit of
    loss. Grouped and depthwise convolutions count by their weights. Products inside attention are not counted.

    `accumulate`, `reset`, `samples`, `state`, `load` and `merge` are those of the inner criterion, where it has them.

    Args:
        inner: the other criterion.
        power: the exponent \(\gamma\). 0 (default) does not scale by the multiply-accumulates; any other value needs
            `measure` first.
        normalise: "none" (default), "mean", "max" or "sum".

    Raises:
        CriterionError: the normalisation is unknown, or the power is no finite number.

    >>> import torch
    >>> from hfp.importance import ScaledImportance, create
    >>> criterion = ScaledImportance(create("l1"), power=0.5, normalise="mean")
    >>> criterion.measure(torch.nn.Linear(4, 2), torch.randn(1, 4))
    """

    def __init__(self, inner: tp.importance.Importance, power: float = 0.0, normalise: str = "none") -> None:
        if normalise not in NORMALISATIONS:
            raise CriterionError(f"normalise is one of {', '.join(NORMALISATIONS)}, not {normalise!r}")
        if not isinstance(power, int | float | np.floating) or not math.isfinite(power):
            raise CriterionError(f"power is a finite number, not {power!r}")
        self.inner = inner
        self.power = power
        self.normalise = normalise
        self._positions: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        if name in _INNER and "inner" in self.__dict__:
            return getattr(self.inner, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def merge(self, other: Any) -> None:
        """Add what another criterion, scaled or not, has accumulated on other samples.

        Raises:
            CriterionError: the inner criterion refuses the other, or accumulates nothing.
        """
        if not hasattr(self.inner, "merge"):
            raise CriterionError(f"a {type(self.inner).__name__} accumulates nothing that could be merged")
        self.inner.merge(other.inner if isinstance(other, ScaledImportance) else other)

    def measure(self, model: nn.Module, example_inputs: Any) -> None:
        """Run the model once to see how many positions each layer computes; the model is left as it was.

        Args:
            model: the model that will be pruned.
            example_inputs: what the model is called with. A tuple or list is unpacked into arguments, a dictionary into
                keywords. The first tensor has one row per sample.
        """
        model = unwrapped(model)
        found: dict[str, float] = {}
        samples = max(samples_in((mapped(example_inputs, lambda tensor: tensor),)), 1)
        handles = [
            module.register_forward_hook(_count(found, name, samples), with_kwargs=True)
            for name, module in model.named_modules()
            if isinstance(module, PRODUCTS)
        ]
        try:
            with untouched(model, parameters_require_grad=False), torch.no_grad():
                call(model, example_inputs)
        finally:
            for handle in handles:
                handle.remove()
        self._positions = found

    @scoring
    def __call__(self, group: Any) -> Tensor:
        """Return the scores of the group's channels, `[width]`.

        Raises:
            CriterionError: a power is set and `measure` was not called or did not see a layer, or the scores cannot be
                normalised.
        """
        scores = self.inner(group)
        if self.normalise != "none":
            unit = getattr(scores, self.normalise)()
            if not unit > 0:
                raise CriterionError(
                    f"the {self.normalise} of the scores of {root_name(group)!r} is {unit}: not positive"
                )
            scores = scores / unit
        return scores if self.power == 0 else scores / self.macs(group).to(scores) ** self.power

    def macs(self, group: Any) -> Tensor:
        """Return the multiply-accumulates per sample that go with each channel of a group, `[width]`.

        Raises:
            CriterionError: `measure` did not see a layer of the group, or the group has no convolution or linear layer.
        """
        total = torch.zeros(width(group), dtype=torch.float64)
        for member in members(group):
            layer: Any = member.layer
            if isinstance(layer, PRODUCTS):
                if not self._positions:
                    raise CriterionError(f"layer {member.name!r} is not measured; call measure(model, example_inputs)")
                if member.name not in self._positions:
                    raise CriterionError(
                        f"layer {member.name!r} never ran by itself in measure(): is this the same model? If it is, "
                        "put its group into ignored_layers, or take power=0"
                    )
                channels = _channels(layer, member.direction)
                share = self._positions[member.name] * weight_entries(layer) / channels
                total.index_add_(0, member.positions, torch.full((len(member.positions),), share, dtype=torch.float64))
        if not total.min() > 0:
            raise CriterionError(f"a channel of {root_name(group)!r} goes with no convolution or linear layer")
        return total


def _channels(layer: Any, direction: str) -> int:
    counts = counts_of(layer)
    assert counts is not None
    return int(getattr(layer, str(counts[direction == "out"])))


def _count(found: dict[str, float], name: str, samples: int) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        positions = next(iter((*args, *kwargs.values()))) if multiplies_inputs(module) else output
        channels = positions.shape[channel_dim(module)]
        found[name] = found.get(name, 0.0) + positions.numel() / channels / samples

    return hook
