"""A copy of somebody's model to work on, so that the model itself never runs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import nn

from hfp.errors import InputError
from hfp.reconstruct.models.copying import copied
from hfp.reconstruct.models.twin import computed

_SAFE = ("torch.", "transformers.utils.")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def own_copy(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy that can run without a trace in the model: (the copy, the layers whose hooks it lacks).

    The copy shares the parameters, which a forward pass does not write to, and has buffers, attributes and hooks of its
    own. Hooks that are plain functions can't be copied, and would reach what the caller keeps, so the copy lacks them;
    those of PyTorch and transformers reach nothing of the caller's, and stay.

    Raises:
        InputError: an attribute can't be copied.
    """
    memo: dict[int, Any] = {
        **computed(model),
        **{id(buffer): buffer.detach().clone() for buffer in model.buffers()},
        **{id(parameter): parameter for parameter in model.parameters()},
    }
    try:
        found = copied(model, memo)
    except Exception as error:
        raise InputError(f"the model can't be copied: {_culprit(model, error)}") from error
    return found, tuple(dict.fromkeys(_without_functions(found)))


def _culprit(model: nn.Module, error: Exception) -> str:
    """The attribute that a copy fails on, and what to do."""
    known = {id(value): value for value in (*model.parameters(), *model.modules())}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            try:
                copy.deepcopy(value, {**computed(model), **known})
            except Exception as reason:
                kind = type(value).__name__
                return (
                    f"attribute {attribute!r} of {name or 'the model'} is a {kind} ({reason}); "
                    "delete it while pruning, or give its class a __deepcopy__"
                )
    return f"{type(error).__name__}: {error}"


def _without_functions(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        for kind in _HOOKS:
            hooks = vars(module).get(kind, {})
            for key in [key for key, hook in hooks.items() if _is_function(hook)]:
                del hooks[key]
                yield name or "the model"


def _is_function(hook: Any) -> bool:
    """Whether a hook is a function of the caller's; methods and other objects are copied with the model."""
    if isinstance(hook, partial):
        return _is_function(hook.func)
    plain = isinstance(hook, FunctionType | BuiltinFunctionType)
    return plain and not (hook.__module__ or "").startswith(_SAFE)
