"""A copy of somebody's model to work on, so that the model itself never runs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hfp.errors import InputError, described, message_of
from hfp.reconstruct.models.copying import copied
from hfp.reconstruct.models.twin import computed, like

_SAFE = ("torch.", "transformers.utils.")
MEND_HOOKS = ": if one changes what the model computes, make it a part of the model"
"""What to do about hooks that a copy lacks."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def own_copy(model: nn.Module, share: bool = True) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy that can run without a trace in the model: (the copy, the layers whose hooks it lacks).

    The copy has buffers, attributes and hooks of its own. Hooks that are plain functions can't be copied, and would
    reach what the caller keeps, so the copy lacks them; those of PyTorch and transformers reach nothing of the
    caller's, and stay.

    Args:
        model: the caller's model.
        share: whether the copy shares the values of the parameters, to which few models write when they run (see
            `Unwritten`). A parameter that has hooks, which a backward pass would call, or that was made in
            `torch.inference_mode`, is another object in the copy.

    Raises:
        InputError: an attribute can't be copied.
    """
    memo: dict[int, Any] = {
        **computed(model),
        **{id(buffer): buffer.detach().clone() for buffer in model.buffers()},
        **{id(parameter): _shared(parameter) for parameter in (model.parameters() if share else ())},
    }
    try:
        found = copied(model, memo)
    except Exception as error:
        raise InputError(f"the model can't be copied: {_culprit(model, error)}") from error
    return found, tuple(dict.fromkeys(_without_functions(found)))


class ParameterWritten(Exception):
    """A model writes to a parameter when it runs, or when it goes to evaluation mode."""


class Unwritten(TorchDispatchMode):
    """Stops a model inside before it writes to one of its parameters, as layers do that merge what was learnt.

    Raises:
        ParameterWritten: the model was about to write.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._places = {_place(parameter) for parameter in model.parameters()} - {0}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation that writes to no parameter."""
        given = kwargs or {}
        if function._schema.is_mutable:
            for place, argument in enumerate(function._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written = args[place] if place < len(args) else given.get(argument.name)
                    if any(_place(each) in self._places for each in tree_leaves(written) if isinstance(each, Tensor)):
                        raise ParameterWritten
        return function(*args, **given)


def _place(tensor: Tensor) -> int:
    """Where the values of a tensor begin in memory; 0 where it has none."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def _shared(parameter: nn.Parameter) -> Tensor:
    values = parameter.detach()
    if parameter.is_inference():  # nothing can be written to it, not even what it requires
        values = values.clone()
    elif not parameter._backward_hooks and not parameter._post_accumulate_grad_hooks:
        return parameter
    return like(parameter, values).requires_grad_(parameter.requires_grad)


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
                    f"attribute {attribute!r} of {name or 'the model'} is a {kind} ({message_of(reason)}); "
                    "delete it while pruning, or give its class a __deepcopy__"
                )
    return described(error)


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
