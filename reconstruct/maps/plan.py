"""Hold a checked decision about which channels of every coupled group are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import index
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from hfp.errors import counted
from hfp.reconstruct.errors import MapError
from hfp.reconstruct.maps.tables import html_table, share


@dataclass(frozen=True, repr=False)
class Plan:
    """The channels of every coupled group that are kept.

    Args:
        sizes: how many channels each group has in the full model, by its name.
        kept: the channels of each group that are kept, ascending, in full coordinates. A group that is left out keeps
            all.

    Raises:
        MapError: a group is unknown, or indices are no whole numbers, empty, out of range, repeated or not ascending.

    >>> from hfp.reconstruct import Plan
    >>> plan = Plan({"conv1": 4, "conv2": 8}, {"conv1": (0, 3)})
    >>> plan
    <Plan: 2 of 12 channels removed, from 1 of 2 coupled groups>
    >>> plan.kept["conv1"]
    (0, 3)
    """

    sizes: Mapping[str, int]
    kept: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        unknown = [name for name in self.kept if name not in self.sizes]
        if unknown:
            raise MapError(
                f"no coupled group is called {unknown[0]!r}; there are {', '.join(list(self.sizes)[:6])}, ..."
            )
        whole = {name: tuple(range(size)) for name, size in self.sizes.items()}
        kept = {name: numbers_of(name, channels) for name, channels in self.kept.items()}
        for name, indices in kept.items():
            _check(name, indices, self.sizes[name])
        object.__setattr__(self, "sizes", MappingProxyType(dict(self.sizes)))
        object.__setattr__(self, "kept", MappingProxyType({**whole, **kept}))

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what copies are made of, which `copy.deepcopy` and other processes get."""
        return type(self), (dict(self.sizes), dict(self.kept))

    @property
    def ratio(self) -> float:
        """Return the share removed of all groups' channels."""
        total = sum(self.sizes.values())
        return 1 - sum(map(len, self.kept.values())) / total if total else 0.0

    def __repr__(self) -> str:
        """Return one line, however many groups there are."""
        removed = {name: size - len(self.kept[name]) for name, size in self.sizes.items()}
        cut = sum(count > 0 for count in removed.values())
        channels = counted(sum(self.sizes.values()), "channel")
        return (
            f"<Plan: {sum(removed.values()):,} of {channels} removed, "
            f"from {cut} of {counted(len(self.sizes), 'coupled group')}>"
        )

    def _repr_html_(self) -> str:
        rows = [
            (name, size, len(self.kept[name]), share(len(self.kept[name]), size)) for name, size in self.sizes.items()
        ]
        caption = f"Plan: {self.ratio:.1%} of all channels removed"
        return html_table(caption, ("coupled group", "channels", "kept", "share kept"), rows)


def numbers_of(name: str, channels: Iterable[Any] | Tensor) -> tuple[int, ...]:
    """Return the numbers of channels; truth values, of which a mask consists, are none."""
    try:
        each = channels.tolist() if isinstance(channels, Tensor) else list(channels)
        found: list[Any] = [channel.item() if isinstance(channel, Tensor) else channel for channel in each]
        if not any(isinstance(channel, bool | np.bool_) for channel in found):
            return tuple(map(index, found))
    except TypeError:
        pass
    raise MapError(f"{name}: expected the numbers of channels, found {repr(channels)[:80]}")


def _check(name: str, indices: tuple[int, ...], size: int) -> None:
    if not indices:
        raise MapError(f"{name}: no channel is kept; keep at least one of {size}")
    if indices[0] < 0 or indices[-1] >= size or any(a >= b for a, b in zip(indices, indices[1:], strict=False)):
        raise MapError(
            f"{name}: expected ascending channels without repeats in [0, {size}), got {list(indices[:8])} ..."
        )
