"""A configuration that says the sizes of a pruned model, where transformers has words for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hfp.errors import InputError
from hfp.language.folder import ModelFolder
from hfp.language.outline import config_of, without_weights
from hfp.language.widths import Width
from hfp.reconstruct import IndexMap

_HEADS = ("num_key_value_heads", "num_kv_heads", "num_attention_heads")
_FEED_FORWARD = ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size")
_HIDDEN = ("hidden_size", "word_embed_proj_dim", "embedding_size")


def narrower(config: Any, widths: Sequence[Width]) -> dict[str, Any] | None:
    """The fields of a configuration that say what became of its widths.

    Args:
        config: the configuration of the full model.
        widths: what became of each width.

    Returns:
        Field to value; None where blocks differ or the configuration has no field.
    """
    own = copy.deepcopy(config)
    before = own.to_dict()
    for width in widths:
        if width.before != width.after and (
            len(width.before) > 1
            or len(width.after) > 1
            or not _set(own, config, width.kind, width.before[0], width.after[0])
        ):
            return None
    return {key: value for key, value in own.to_dict().items() if key not in before or value != before[key]}


def sizes_that_can_be_said(folder: ModelFolder, config: Any, kind: str, size: int) -> tuple[int, ...] | None:
    """The sizes of a width that transformers takes in a configuration, such as numbers of heads that divide the width.

    None where it takes the size next to the full one, so that there is no such rule, or none at all.
    """
    if kind == "feed-forward" or size < 2 or _taken(folder, config, Width(kind, "", (size,), (size - 1,))):
        return None
    found = [left for left in range(1, size) if _taken(folder, config, Width(kind, "", (size,), (left,)))]
    return (*found, size) if found else None


def _taken(folder: ModelFolder, config: Any, width: Width) -> bool:
    fields = narrower(config, [width])
    try:
        config_of(folder, fields)
    except InputError:
        return False
    return True


def says(config: Any, kind: Any, index_map: IndexMap) -> bool:
    """Whether a model of this configuration has the compact shapes of a map."""
    try:
        state = without_weights(config, kind).state_dict()
    except InputError:
        return False
    shapes = {name: tensor.compact_shape for name, tensor in index_map.tensors.items()}
    return {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes


def _set(own: Any, config: Any, kind: str, old: int, new: int) -> bool:
    """Set what a width is called; returns whether there is such a field."""
    if kind == "feed-forward":
        fields = [field for field in _FEED_FORWARD if getattr(config, field, "none") in (old, None)]
    elif kind == "hidden":
        fields = [field for field in _HIDDEN if getattr(config, field, None) == old]
    else:
        fields = [field for field in _HEADS if isinstance(getattr(config, field, None), int)]
    for field in fields:
        setattr(own, field, getattr(config, field) * new // old if kind == "heads" else new)
    if kind != "feed-forward":
        try:
            own.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        except AttributeError:  # the configuration always computes it
            return False
    return bool(fields)
