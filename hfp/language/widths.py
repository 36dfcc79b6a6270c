"""What can become narrower in a language model: whole heads, feed-forward channels, and the hidden width."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfp.errors import InputError, listed, repeated
from hfp.language.choices import WIDTHS
from hfp.language.outline import stacks
from hfp.layers.products import PRODUCTS
from hfp.pruning.schedule import Bundle, RankingRules
from hfp.reconstruct import Coupling

_PAIR = 2
"""So many outputs are one channel where rotary embeddings pair what lies together in every head."""
_UNKNOWN = "this model has none that can go whole"


def checked_widths(widths: str | Sequence[str]) -> tuple[str, ...]:
    """Names of widths, in the order of `WIDTHS`.

    Raises:
        InputError: one is unknown or listed twice, or there are none.
    """
    asked = (widths,) if isinstance(widths, str) or not isinstance(widths, Iterable) else tuple(widths)
    unknown = [name for name in asked if name not in WIDTHS]
    if unknown or not asked:
        raise InputError(f"widths are some of {', '.join(WIDTHS)}, not {unknown[0] if unknown else widths!r}")
    if (twice := repeated(asked)) is not None:
        raise InputError(f"widths list {twice} twice; list each once")
    return tuple(name for name in WIDTHS if name in asked)


def kinds_of(coupling: Coupling, model: Any) -> dict[str, str | None]:
    """Which width each coupled group is of; None for a group that is none of them.

    The hidden width is what the embedding writes. Whole heads are as many channels of an attention as the configuration
    has heads, or key-value heads, and lie together. All else inside a block is feed-forward.
    """
    modules = dict(model.named_modules())
    embedding = next(name for name, module in modules.items() if module is model.get_input_embeddings())
    counts = _head_counts(model)
    blocks = tuple(f"{name}." for name in stacks(model))

    def kind(group: str) -> str | None:
        layers = {member.layer for member in coupling.members(group)}
        if embedding in layers:
            return "hidden"
        if any(_in_attention(layer, modules, blocks) for layer in layers):
            whole = coupling.sizes[group] in counts and coupling.longest_run(group) > _PAIR
            return "heads" if whole else None
        return "feed-forward" if group.startswith(blocks) else None

    return {group: kind(group) for group in coupling.names}


def _head_counts(model: Any) -> set[int | None]:
    names = ("num_attention_heads", "num_key_value_heads", "num_kv_heads")
    return {getattr(model.config, name, None) for name in names}


def _in_attention(layer: str, modules: Mapping[str, Any], blocks: Sequence[str]) -> bool:
    """Whether a layer lies in a module of attention, which is a part of a block."""
    stack = next((stack for stack in blocks if layer.startswith(stack)), "")
    parts = layer.split(".")
    least = len(stack.split(".")) + 1 if stack else 1
    above = (modules.get(".".join(parts[:count])) for count in range(least, len(parts) + 1))
    return any("attention" in type(module).__name__.lower() for module in above)


def nothing_goes(widths: Sequence[str], coupling: Coupling, model: Any, kinds: Mapping[str, str | None]) -> str:
    """Why none of the widths can become narrower, and which others can."""
    others = sorted({kind for kind in kinds.values() if kind is not None})
    able = f"this model can lose {listed(others)}" if others else "blocks can be removed (drop_blocks)"
    reasons = "; ".join(f"{kind}: {why_whole(kind, coupling, model)}" for kind in widths)
    return f"none of {', '.join(widths)} can become narrower ({reasons}); {able}"


def why_whole(kind: str, coupling: Coupling, model: Any) -> str:
    """Why nothing of a width can be removed: the module, and what it does with the size."""
    modules = dict(model.named_modules())
    if kind == "hidden":
        name = next(name for name, module in modules.items() if module is model.get_input_embeddings())
        return coupling.reason(f"{name}.weight", 1) or _UNKNOWN
    blocks = tuple(f"{name}." for name in stacks(model))
    layers = [
        name
        for name, module in modules.items()
        if isinstance(module, PRODUCTS)
        and name.startswith(blocks)
        and _in_attention(name, modules, blocks) == (kind == "heads")
    ]
    if kind == "heads" and not layers:
        return "it has no attention"
    counts = _head_counts(model)
    if kind == "heads" and counts - {None} == {1}:
        return "it has a single head, and one has to stay"
    factors = {name: coupling.factors_kept(name) for name in layers}
    found = [reason for each in factors.values() for size, reason in each.items() if size in counts]
    found += _with_shared_keys(factors, modules, model.config)
    return next(
        iter([*found, *(coupling.left_alone[name] for name in layers if name in coupling.left_alone)]), _UNKNOWN
    )


def _with_shared_keys(factors: Mapping[str, Mapping[int, str]], modules: Mapping[str, Any], config: Any) -> list[str]:
    """Why heads stay that lie in one dimension with the one key and the one value that they share, as in Falcon."""
    heads, width = (getattr(config, name, None) or 0 for name in ("num_attention_heads", "hidden_size"))
    return [
        f"{reason}: all heads and the one key-value head lie in it"
        for name, each in factors.items()
        for size, reason in each.items()
        if size == heads + 2 and getattr(modules[name], "out_features", 0) * heads == size * width
    ]


def chosen_bundles(
    bundles: Sequence[Bundle], kinds: Mapping[str, str | None], widths: Sequence[str], fields: Mapping[str, str] | None
) -> list[Bundle]:
    """The bundles that may lose channels.

    Args:
        bundles: all of them.
        kinds: the width that each group is of.
        widths: which widths may become narrower.
        fields: None lets blocks differ. Otherwise all blocks keep as many channels of a kind: the groups that are of
            the same layer in each block make one bundle, and so do those that depend on the same field of the
            configuration.

    Raises:
        InputError: there is none, because each is tied to a width that may not.
    """
    found = [bundle for bundle in bundles if all(kinds[name] in widths for name in bundle.scores)]
    if not found:
        raise InputError(f"{', '.join(widths)} can become narrower only together with another width; name that one too")
    return found if fields is None else _uniform(found, kinds, fields)


def _uniform(bundles: Sequence[Bundle], kinds: Mapping[str, str | None], fields: Mapping[str, str]) -> list[Bundle]:
    merged: dict[tuple[Any, ...], Bundle] = {}
    for bundle in bundles:
        key = tuple(sorted({(str(kinds[name]), fields.get(name) or role(name)) for name in bundle.scores}))
        known = merged.get(key, Bundle({}, {}))
        merged[key] = Bundle(
            {**known.scores, **bundle.scores}, {**known.widths, **bundle.widths}, {**known.sizes, **bundle.sizes}
        )
    return list(merged.values())


def too_coarse(bundles: Sequence[Bundle], rules: RankingRules) -> bool:
    """Whether the rules leave no bundle a choice."""
    return all(len(bundle.levels(rules)) == 1 for bundle in bundles)


@dataclass(frozen=True)
class Width:
    """What became of a width.

    Args:
        kind: one of `WIDTHS`.
        layer: the layer that writes it, with a star for the number of the block.
        before: its size in every block, or once where all blocks have the same.
        after: the same, of the pruned model.
    """

    kind: str
    layer: str
    before: tuple[int, ...]
    after: tuple[int, ...]


def kept_widths(
    coupling: Coupling, kinds: Mapping[str, str | None], kept: Mapping[str, Sequence[int]], widths: Sequence[str]
) -> tuple[Width, ...]:
    """What became of the widths that may become narrower."""
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for name in coupling.names:
        kind, size = kinds[name], coupling.sizes[name]
        if kind in widths:
            found.setdefault((str(kind), role(name)), []).append((size, len(kept.get(name, range(size)))))
    return tuple(
        Width(kind, layer, _short([before for before, _ in pairs]), _short([after for _, after in pairs]))
        for (kind, layer), pairs in found.items()
    )


def role(group: str) -> str:
    """The name of a group with a star for the number of its block."""
    return re.sub(r"\.\d+\.", ".*.", group)


def _short(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(sizes[:1]) if len(set(sizes)) == 1 else tuple(sizes)
