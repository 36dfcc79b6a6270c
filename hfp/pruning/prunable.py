"""Whether there is a model that can be pruned at all, before anything of it runs."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hfp.errors import InputError
from hfp.pruning.budget import Budget

_NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
_STATISTICS = ("running_mean", "running_var")


def check_model(model: Any, budget: Any) -> None:
    """Make sure that there is a model with weights, all of them numbers, and a budget.

    Raises:
        InputError: one of them is something else, a tensor has no values or no shape yet, a weight is NaN, or the
            model's state does not hold its parameters under their names.
    """
    if not isinstance(model, nn.Module) or not isinstance(budget, Budget):
        raise InputError(f"expected a module and a Budget, got {type(model).__name__} and {type(budget).__name__}")
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise InputError(f"{name} has no shape before the model's first call; call the model once on the inputs")
        if tensor.is_meta:
            raise InputError(
                f"{name} is on the meta device, so there are no weights to prune; Coupling.trace plans without weights"
            )
        counts = isinstance(tensor, nn.Parameter) or name.endswith(_STATISTICS)
        if counts and tensor.dtype in _NUMBERS and tensor.isnan().any():
            raise InputError(f"{name} holds values that are NaN, so that nothing can be scored; give other weights")
    _check_state(model)


def _check_state(model: nn.Module) -> None:
    """Make sure that the state holds tensors alone, and every parameter under its name.

    Raises:
        InputError: it does not, as that of a quantised model.
    """
    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"the model's state holds {name}, which is a {type(value).__name__}, and pruning cuts tensors; prune "
                "the model that it was made of where it is quantised, or remove that entry before pruning"
            )
    for name, _ in model.named_parameters():
        if name not in state:
            raise InputError(
                f"the model's state does not hold the parameter {name} under its name; remove what changes the "
                "state before pruning, such as a hook on state_dict"
            )
