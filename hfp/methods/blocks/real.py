"""Refuses complex parameters where values are compared, squared or clipped as real numbers."""

from __future__ import annotations

from hfp.errors import InputError
from hfp.methods.interface.values import MethodContext


def check_real(what: str, context: MethodContext) -> None:
    """Refuse a model with complex parameters.

    Args:
        what: what can't be done with it, as the subject of the message.
        context: what stays the same over the run.

    Raises:
        InputError: naming the first complex parameter.
    """
    for name, parameter in context.model.named_parameters():
        if parameter.is_complex():
            raise InputError(f"{what} needs real parameters, and {name} is {parameter.dtype}; view it as real numbers")
