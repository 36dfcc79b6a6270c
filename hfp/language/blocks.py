"""Depth: whole blocks that are removed from a language model, and put back."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hfp.errors import InputError
from hfp.language.outline import stacks
from hfp.reconstruct import IndexMap, MapError


@dataclass(frozen=True)
class KeptBlocks:
    """Which blocks of a model are kept.

    Args:
        stack: the name of the list of blocks, such as "model.layers".
        count: how many blocks the full model has.
        kept: the indices of those that are kept, ascending.

    Raises:
        MapError: the indices are none, repeated, not ascending or out of range.
    """

    stack: str
    count: int
    kept: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.kept or list(self.kept) != sorted(set(self.kept) & set(range(self.count))):
            raise MapError(f"expected ascending blocks without repeats in [0, {self.count}), got {list(self.kept)}")

    @property
    def removed(self) -> tuple[int, ...]:
        """The indices of the blocks that are gone."""
        return tuple(index for index in range(self.count) if index not in self.kept)

    def full_name(self, name: str) -> str:
        """The name in the full model of a tensor of the shallower one.

        >>> from hfp.language.blocks import KeptBlocks
        >>> KeptBlocks("layers", 4, (0, 3)).full_name("layers.1.weight")
        'layers.3.weight'
        """
        parts = self._parts(name)
        return name if parts is None else f"{self.stack}.{self.kept[parts[0]]}.{parts[1]}"

    def shallow_name(self, name: str) -> str | None:
        """The name in the shallower model of a tensor of the full one; None where its block is gone."""
        parts = self._parts(name)
        if parts is None:
            return name
        return f"{self.stack}.{self.kept.index(parts[0])}.{parts[1]}" if parts[0] in self.kept else None

    def _parts(self, name: str) -> tuple[int, str] | None:
        if not name.startswith(f"{self.stack}."):
            return None
        number, _, rest = name[len(self.stack) + 1 :].partition(".")
        return int(number), rest


@dataclass(frozen=True, repr=False)
class BlockMap:
    """The place of a model that lost whole blocks, and perhaps widths, in its full model.

    It has `restrict` and `embed` as an `IndexMap` has.

    Args:
        blocks: which blocks are kept.
        index_map: the map of the kept blocks' tensors, under their names in the shallower model.

    >>> import torch
    >>> from hfp.language.blocks import BlockMap, KeptBlocks
    >>> from hfp.reconstruct import IndexMap
    >>> full = {f"layers.{block}.weight": torch.full((2,), float(block)) for block in range(3)}
    >>> small = {"layers.0.weight": torch.zeros(2), "layers.1.weight": torch.zeros(2)}
    >>> place = BlockMap(KeptBlocks("layers", 3, (0, 2)), IndexMap.identity(small))
    >>> place.restrict(full)["layers.1.weight"].tolist()
    [2.0, 2.0]
    >>> place.embed(small, into=full)["layers.1.weight"].tolist()
    [1.0, 1.0]
    """

    blocks: KeptBlocks
    index_map: IndexMap

    @cached_property
    def _names(self) -> dict[str, str]:
        """Name in the shallower model -> name in the full one."""
        return {name: self.blocks.full_name(name) for name in self.index_map.tensors}

    def restrict(self, full_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut a full state to the compact one; see `IndexMap.restrict`.

        Raises:
            MapError: it is not the full model's state.
        """
        return self.index_map.restrict(self._shallow(full_state))

    def embed(self, sub: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put a compact state back into a full one; see `IndexMap.embed`. Removed blocks come from `into`.

        Raises:
            MapError: `sub` is not the compact state, or `into` is not a full one.
        """
        found = self.index_map.embed(sub, self._shallow(into))
        back = {full: found[name] for name, full in self._names.items()}
        return {name: back[name] if name in back else tensor.detach().clone() for name, tensor in into.items()}

    @property
    def entries_kept(self) -> str:
        """How many blocks and entries are kept, in words."""
        kept, count = len(self.blocks.kept), self.blocks.count
        return f"{kept} of {count} blocks kept, and in them {self.index_map.entries_kept}"

    def __repr__(self) -> str:
        return f"<BlockMap: {self.entries_kept}>"

    def _shallow(self, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        missing = [name for name in self._names.values() if name not in full]
        numbers = {name.removeprefix(f"{self.blocks.stack}.").partition(".")[0] for name in full if self._inside(name)}
        if missing or len(numbers) != self.blocks.count:
            what = f"it lacks {missing[0]}" if missing else f"it has {len(numbers)} blocks in {self.blocks.stack}"
            raise MapError(f"this is not the full state of this map, which has {self.blocks.count} blocks: {what}")
        surplus = [
            name for name in full if self.blocks.shallow_name(name) not in self.index_map.tensors
            and self.blocks.shallow_name(name) is not None
        ]  # fmt: skip
        if surplus:
            raise MapError(f"this is not the full state of this map: unexpected {surplus[0]}")
        return {name: full[other] for name, other in self._names.items()}

    def _inside(self, name: str) -> bool:
        return name.startswith(f"{self.blocks.stack}.")


def stack_of(model: Any) -> tuple[str, nn.ModuleList]:
    """The one list of blocks of a model.

    Raises:
        InputError: it has several, or none.
    """
    found = {
        name: blocks
        for name, blocks in stacks(model).items()
        if len(blocks) == getattr(model.config, "num_hidden_layers", None)
    }
    if len(found) != 1:
        raise InputError(
            f"blocks can be removed from models with one list of blocks; {type(model).__name__} has {len(found)}"
        )
    return next(iter(found.items()))


def shallower(config: Any, blocks: KeptBlocks) -> dict[str, Any]:
    """The fields of the configuration that change when blocks are removed: their number, and lists of a value each.

    The number of a decoder's blocks may have another name than `num_hidden_layers`.
    """
    own = copy.deepcopy(config)
    before = own.to_dict()
    named = [
        key for key, value in before.items() if "decoder" in key and key.endswith("layers") and value == blocks.count
    ]
    for key in named or ["num_hidden_layers"]:
        setattr(own, key, len(blocks.kept))
    changed = {key: value for key, value in own.to_dict().items() if value != before.get(key)}
    for key, value in before.items():
        if isinstance(value, list) and len(value) == blocks.count and "layer" in key:
            changed[key] = [value[index] for index in blocks.kept]
    return changed


class BlockInfluence:
    """How much each block changes what it is given: one minus the mean cosine between its inputs and outputs.

    Blocks of little influence are removed first. Source: Men et al., ShortGPT (arXiv 2403.03853), equation 1.

    Args:
        blocks: the blocks of a model that is used for nothing else; hooks on them note what passes.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._sums = [0.0] * len(blocks)
        self._counts = [0] * len(blocks)
        for index, block in enumerate(blocks):
            block.register_forward_hook(self._noting(index), with_kwargs=True)

    def _noting(self, index: int) -> Any:
        def note(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            left = output[0] if isinstance(output, tuple) else output
            cosine = torch.cosine_similarity(given.double(), left.double(), dim=-1)
            self._sums[index] += float(cosine.sum())
            self._counts[index] += cosine.numel()

        return note

    @property
    def scores(self) -> list[float]:
        """One score per block, from 0 (it changes no direction) to 2."""
        return [1 - total / max(count, 1) for total, count in zip(self._sums, self._counts, strict=True)]


def least_influential(scores: Sequence[float], drop: int) -> tuple[int, ...]:
    """The indices of the blocks that are kept when `drop` blocks of the lowest scores go."""
    order = sorted(range(len(scores)), key=lambda index: (scores[index], index))
    return tuple(sorted(order[drop:]))
