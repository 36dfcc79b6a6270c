"""Find a classifier's logits in what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hfp.importance.errors import CriterionError


def logits_of(output: Any, size: int) -> Tensor:
    """Return the logits `[size, classes]`: the output itself, its first item, or what it calls `logits`.

    Raises:
        CriterionError: there are none of that shape, or they do not depend on the model.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif isinstance(output, (tuple, list)):
        found = output[0] if output else None
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
    shown = isinstance(found, Tensor) and found.is_floating_point() and found.dim() == 2 and len(found) == size
    if not isinstance(found, Tensor) or not shown or found.shape[1] < 2:
        shape = f" of {found.dtype} and shape {list(found.shape)}" if isinstance(found, Tensor) else ""
        raise CriterionError(
            f"a criterion over classes needs logits [{size}, 2 or more] as the model's output, its first item or its "
            f"'logits'; found a {type(output).__name__}{shape}: take group-fisher or kronecker with fisher='empirical'"
        )
    if not found.requires_grad:
        raise CriterionError("the logits have no gradient: is the output detached, or under no_grad or inference_mode?")
    return found
