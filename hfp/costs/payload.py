"""Packs what crosses the wire: the values of a state in one flat array per dtype. The index map gives the shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hfp.errors import InputError


def pack(state: Mapping[str, Tensor]) -> bytes:
    """Write the values of `state` as bytes, in its own order, without names or shapes.

    Raises:
        InputError: safetensors does not write tensors of a dtype.
    """
    flat: dict[str, list[Tensor]] = {}
    for tensor in state.values():
        flat.setdefault(_name(tensor.dtype), []).append(tensor.detach().cpu().reshape(-1))
    return _saved({dtype: torch.cat(parts) for dtype, parts in flat.items()})


def packed_bytes(state: Mapping[str, Tensor]) -> int:
    """Count the bytes of the message that `pack` would write for `state`; no value is looked at.

    Raises:
        InputError: safetensors does not write tensors of a dtype.

    >>> state = {"weight": torch.zeros(4, 3), "count": torch.tensor(1)}
    >>> packed_bytes(state) == len(pack(state))
    True
    """
    counts: dict[torch.dtype, int] = {}
    for tensor in state.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return _message_bytes(frozenset(counts.items()))


@lru_cache(maxsize=256)
def _message_bytes(counts: frozenset[tuple[torch.dtype, int]]) -> int:
    """Return the length of a message with so many values of each dtype, from one that is written once."""
    return len(_saved({_name(dtype): torch.zeros(count, dtype=dtype) for dtype, count in counts}))


def _saved(tensors: dict[str, Tensor]) -> bytes:
    try:
        return save(tensors)
    except KeyError as error:
        raise InputError(f"this version of safetensors does not write tensors of {error.args[0]}") from error


def unpack(message: bytes, like: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Tensor]:
    """Read the state that `pack` was given.

    Args:
        message: what `pack` wrote.
        like: the shape and dtype of every entry, by name and in the state's order.

    Raises:
        InputError: the message is damaged, or holds more, fewer or other values than `like` asks for.
    """
    try:
        flat = load(message)
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # safetensors refuses what is no file; a dtype or shape that torch hasn't is refused in its own ways
        raise InputError(f"a payload of {len(message)} bytes can't be read: {error}") from error
    needed: dict[str, int] = {}
    for shape, dtype in like.values():
        needed[_name(dtype)] = needed.get(_name(dtype), 0) + math.prod(shape)
    found = {
        dtype: values.numel() for dtype, values in flat.items() if _name(values.dtype) == dtype and values.dim() == 1
    }
    if found != needed:
        raise InputError(f"a payload must hold {needed} values; found {found}")
    state, position = {}, dict.fromkeys(needed, 0)
    for name, (shape, dtype) in like.items():
        key, count = _name(dtype), math.prod(shape)
        state[name] = flat[key][position[key] : position[key] + count].reshape(shape).clone()
        position[key] += count
    return state


def layout(state: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return the shape and dtype of every entry, as `unpack` wants them."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
