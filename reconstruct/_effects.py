"""What one torch-pruning function does to one layer, learned once so that it need not be run for every plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfp.reconstruct._closure import Site
from hfp.reconstruct._factor import factor, flat_indices
from hfp.reconstruct._layer_norm import in_order
from hfp.reconstruct._twin import Twin
from hfp.reconstruct.attributes import changes, snapshot
from hfp.reconstruct.errors import MapError
from hfp.reconstruct.index_map import TensorMap

Place = tuple[str, int]  # tensor inside the layer ("" when the layer is a parameter), dimension
Attribute = tuple[str, str]  # module inside the layer, attribute


@dataclass(frozen=True)
class Outcome:
    """Kept indices per cut dimension, and attributes with their new values."""

    kept: Mapping[Place, Tensor]
    attributes: Mapping[Attribute, Any]


def try_out(site: Site, gone: Tensor, where: str) -> Outcome:
    """Remove the channels marked in `gone` from a twin of the layer, and see what is left.

    Raises:
        MapError: what is left can't be described by kept indices per dimension.
    """
    layer, handler = site.node.module, in_order(site.handler)
    indices = gone.nonzero().view(-1).tolist()
    handler.__self__.pruning_dim = site.node.pruning_dim  # type: ignore[attr-defined]
    if isinstance(layer, nn.Parameter):
        left = handler(nn.Parameter(flat_indices(layer)), indices)
        return Outcome(_places({"": factor(left, tuple(layer.shape), where)}), {})
    twin = Twin(layer)
    before = snapshot(twin.module)
    handler(twin.module, indices)
    changed = changes(before, twin.module)
    attributes = {(name, key): value for name, part in changed.items() for key, value in part.items()}
    return Outcome(_places(twin.kept(where)), attributes)


@dataclass(frozen=True)
class Formula:
    """The usual effect: some dimensions lose exactly the removed channels, some attributes count the kept ones.

    Args:
        places: the dimensions that are cut.
        counts: attribute -> (value before, change per removed channel); sequences element by element.
    """

    places: tuple[Place, ...]
    counts: Mapping[Attribute, tuple[Any, Any]]

    def outcome(self, gone: Tensor) -> Outcome:
        """What removing the channels marked in `gone` leaves."""
        kept = (~gone).nonzero().view(-1)
        number = gone.numel() - kept.numel()
        attributes = {key: _shifted(before, slope, number) for key, (before, slope) in self.counts.items()}
        return Outcome(dict.fromkeys(self.places, kept), attributes)


def learn(site: Site, channels: int, where: str) -> Formula | None:
    """The formula of a site, if three trials with different channels agree with one; else None."""
    if channels < 2:
        return None
    index = torch.arange(channels)
    trials = (index % 2 == 1, index % 3 == 0, index < channels - 1)
    try:
        outcomes = [try_out(site, gone, where) for gone in trials]
    except Exception:  # a function may reject arbitrary channels; it is then asked again for every plan
        return None
    formula = _fitted(site.node.module, outcomes[0], int(trials[0].sum()))
    agree = formula is not None and all(
        _same(formula.outcome(gone), found) for gone, found in zip(trials, outcomes, strict=True)
    )
    return formula if agree else None


def merge(outcomes: Mapping[str, Outcome], where: str) -> Outcome:
    """The effect of several functions on one layer.

    Raises:
        MapError: two of them cut the same dimension, or set an attribute to different values.
    """
    kept: dict[Place, Tensor] = {}
    attributes: dict[Attribute, Any] = {}
    for outcome in outcomes.values():
        for place, indices in outcome.kept.items():
            if not torch.equal(kept.setdefault(place, indices), indices):
                raise MapError(f"{where}: {' and '.join(outcomes)} both cut dimension {place[1]} of {place[0]!r}")
        for key, value in outcome.attributes.items():
            if attributes.setdefault(key, value) != value:
                raise MapError(f"{where}: {' and '.join(outcomes)} both change {key[1]!r}")
    return Outcome(kept, attributes)


def _places(cuts: Mapping[str, TensorMap]) -> dict[Place, Tensor]:
    return {
        (name, dim): indices
        for name, cut in cuts.items()
        for dim, indices in enumerate(cut.kept)
        if indices is not None
    }


def _fitted(layer: nn.Module, outcome: Outcome, number: int) -> Formula | None:
    counts = {}
    for (name, key), new in outcome.attributes.items():
        old = vars(layer.get_submodule(name))[key]
        slope = _slope(old, new, number)
        if slope is None:
            return None
        counts[name, key] = (old, slope)
    return Formula(tuple(outcome.kept), counts)


def _slope(old: Any, new: Any, number: int) -> Any:
    if type(old) in (list, tuple) and len(old) == len(new):
        parts = [_slope(a, b, number) for a, b in zip(old, new, strict=True)]
        return None if None in parts else parts
    if type(old) is int and type(new) is int and (new - old) % number == 0:
        return (new - old) // number
    return None


def _shifted(old: Any, slope: Any, number: int) -> Any:
    if isinstance(slope, list):
        return type(old)(_shifted(a, b, number) for a, b in zip(old, slope, strict=True))
    return old + slope * number


def _same(one: Outcome, other: Outcome) -> bool:
    return (
        one.attributes == other.attributes
        and one.kept.keys() == other.kept.keys()
        and all(torch.equal(indices, other.kept[place]) for place, indices in one.kept.items())
    )
