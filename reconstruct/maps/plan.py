"""A checked decision: which channels of every coupled group are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hfp.reconstruct.errors import MapError


@dataclass(frozen=True)
class Plan:
    """Kept channels per coupled group.

    Args:
        sizes: group name -> number of channels in the full model.
        kept: group name -> kept channels, ascending, in full coordinates; a group that is left out keeps all.

    Raises:
        MapError: an unknown group, or indices that are empty, out of range, repeated or not ascending.
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
        kept = {name: tuple(int(index) for index in indices) for name, indices in self.kept.items()}
        for name, indices in kept.items():
            _check(name, indices, self.sizes[name])
        object.__setattr__(self, "sizes", MappingProxyType(dict(self.sizes)))
        object.__setattr__(self, "kept", MappingProxyType({**whole, **kept}))

    @property
    def ratio(self) -> float:
        """The share of all groups' channels that is removed."""
        total = sum(self.sizes.values())
        return 1 - sum(map(len, self.kept.values())) / total if total else 0.0


def _check(name: str, indices: tuple[int, ...], size: int) -> None:
    if not indices:
        raise MapError(f"{name}: no channel is kept; keep at least one of {size}")
    if indices[0] < 0 or indices[-1] >= size or any(a >= b for a, b in zip(indices, indices[1:], strict=False)):
        raise MapError(
            f"{name}: expected ascending channels without repeats in [0, {size}), got {list(indices[:8])} ..."
        )
