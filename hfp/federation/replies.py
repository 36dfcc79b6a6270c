"""Checks whether a reply can be used, before anything of it reaches the global model, whoever ran the client."""

from __future__ import annotations

import math

import torch

from hfp.errors import InputError
from hfp.methods import Method, MethodContext, Reply, ServerState, Update
from hfp.reconstruct import MapError


def problem_of(method: Method, context: MethodContext, state: ServerState, update: Update) -> str:
    """Say in a sentence why an update can't be used; the text is empty when it can."""
    try:
        check_values(update.reply)
        method.check_reply(context, state, update)
    except (InputError, MapError) as error:
        return " ".join(str(error).split())
    return ""


def check_values(reply: Reply) -> None:
    """Refuse figures below 0 and values that are not finite.

    Raises:
        InputError: naming the figure or tensor.
    """
    for name in ("steps", "samples", "parameters", "forward_macs", "training_macs", "peak_bytes"):
        if getattr(reply, name) < 0:
            raise InputError(f"{name} must be at least 0; found {getattr(reply, name)}")
    for name in ("loss", "variance"):
        value = getattr(reply, name)
        if value is not None and not math.isfinite(value):
            raise InputError(f"{name} must be finite; found {value}")
    # the least and the greatest value are finite if all are, and looking for them is one quick pass
    finite = {
        name: torch.stack(tensor.aminmax()).isfinite().all()
        for name, tensor in reply.tensors.items()
        if tensor.is_floating_point() and tensor.numel()
    }
    if finite and not torch.stack([whole.to(next(iter(finite.values()))) for whole in finite.values()]).all():
        broken = next(name for name, whole in finite.items() if not whole)
        raise InputError(f"{broken} holds values that are not finite")
