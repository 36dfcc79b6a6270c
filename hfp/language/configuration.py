"""A configuration that says the sizes of a pruned model, where transformers has words for them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hfp.errors import InputError
from hfp.language.folder import ModelFolder
from hfp.language.outline import config_of, without_weights
from hfp.language.widths import Width
from hfp.reconstruct import IndexMap

_HEADS = ("num_key_value_heads", "num_kv_heads", "num_attention_heads")
_FEED_FORWARD = ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size")
"""Fields that may be None, which means a multiple of the hidden width."""
_HIDDEN = ("hidden_size", "word_embed_proj_dim", "embedding_size")


def narrower(
    config: Any, widths: Sequence[Width], matching: Callable[[Any], int] | None = None
) -> dict[str, Any] | None:
    """The fields of a configuration that say what became of its widths.

    Args:
        config: the configuration of the full model.
        widths: what became of each width.
        matching: configuration -> how many tensors of its model have the pruned shapes, which tells fields of the same
            value apart.

    Returns:
        Field to value; None where blocks differ or the configuration has no field.
    """
    own = copy.deepcopy(config)
    before = own.to_dict()
    for width in widths:
        if width.before != width.after and (
            len(width.before) > 1 or len(width.after) > 1 or not _set(own, config, width, matching)
        ):
            return None
    return {key: value for key, value in own.to_dict().items() if key not in before or value != before[key]}


def fields_of(config: Any, kind: Any, sizes: Mapping[str, int]) -> dict[str, str]:
    """The field of a configuration that the size of each feed-forward layer depends on.

    A model has one width for all experts, for example, and its shared experts are so many times as wide.

    Args:
        config: the configuration.
        kind: the class of models.
        sizes: layer or parameter -> its size.

    Returns:
        Layer or parameter -> field, for those whose shapes change with a field that holds one of the sizes.
    """
    model = without_weights(config, kind)
    state = model.state_dict(keep_vars=True)
    before = {name: tuple(tensor.shape) for name, tensor in state.items()}
    embeddings = {name for name, tensor in state.items() if tensor is model.get_input_embeddings().weight}
    found: dict[str, str] = {}
    for field, value in config.to_dict().items():
        if type(value) is not int or value < 2 or value not in sizes.values():
            continue
        try:
            other = copy.deepcopy(config)
            setattr(other, field, value // 2)
            after = _shapes(other, kind)
        except Exception:  # transformers refuses the value
            continue
        changed = [name for name, shape in before.items() if after.get(name) != shape]
        if not embeddings.intersection(changed):
            own = {group for group in sizes if any(name == group or name.startswith(f"{group}.") for name in changed)}
            found = {**dict.fromkeys(own, field), **found}
    return found


def _shapes(config: Any, kind: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in without_weights(config, kind).state_dict().items()}


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


def first_mismatch(config: Any, kind: Any, index_map: IndexMap) -> str | None:
    """Tell the first tensor whose shape in a model of this configuration is not the pruned one; None without any."""
    try:
        shapes = _shapes(config, kind)
    except InputError as error:
        return f"there is no such model ({error})"
    wrong = (
        f"{name} would have the shape {list(shapes.get(name, ()))} instead of {list(tensor.compact_shape)}"
        for name, tensor in index_map.tensors.items()
        if shapes.get(name) != tensor.compact_shape
    )
    return next(wrong, None)


def tensors_that_match(kind: Any, index_map: IndexMap, config: Any) -> int:
    """How many tensors of a model of this configuration have the compact shapes of a map; 0 where it has others."""
    try:
        shapes = _shapes(config, kind)
    except InputError:
        return 0
    if shapes.keys() != index_map.tensors.keys():
        return 0
    return sum(shapes[name] == tensor.compact_shape for name, tensor in index_map.tensors.items())


def _set(own: Any, config: Any, width: Width, matching: Callable[[Any], int] | None) -> bool:
    """Set what a width is called; returns whether there is such a field."""
    old, new = width.before[0], width.after[0]
    if width.kind == "feed-forward":
        _set_feed_forward(own, config, old, new, matching)
        return True  # the field of another width may say this one too
    if width.kind == "hidden":
        fields = [field for field in _HIDDEN if getattr(config, field, None) == old]
    else:
        counts = {field: getattr(config, field, None) for field in _HEADS}
        # a single key-value head that all heads share stays
        fields = [field for field, count in counts.items() if isinstance(count, int) and count % old == 0]
    for field in fields:
        setattr(own, field, getattr(config, field) * new // old if width.kind == "heads" else new)
    try:
        own.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    except AttributeError:  # the configuration always computes it
        return False
    return bool(fields)


def _set_feed_forward(own: Any, config: Any, old: int, new: int, matching: Callable[[Any], int] | None) -> None:
    """Set the field of this value with which most tensors have the pruned shapes, if there is one."""
    unset = [field for field in _FEED_FORWARD if getattr(config, field, old) is None]
    fields = [*unset, *(field for field, value in config.to_dict().items() if type(value) is int and value == old)]
    best, reached = None, 0 if matching is None else matching(own)
    for field in fields:
        tried = copy.deepcopy(own)
        try:
            setattr(tried, field, new)
            found = 1 if matching is None else matching(tried)
        except Exception:  # transformers refuses the value, so it is another field
            continue
        if found > reached:
            best, reached = field, found
    if best is not None:
        setattr(own, best, new)
