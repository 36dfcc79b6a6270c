"""Check with the model's own weights that a pruned folder computes what it should, block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hfp.errors import InputError, described
from hfp.language.blocks import stack_of
from hfp.language.folder import ModelFolder
from hfp.language.outline import Outline, example_inputs
from hfp.language.planning import FolderPlan
from hfp.language.stored import Weights
from hfp.language.streaming import StreamedModel

TOLERANCE = 1e-3
"""How far two outputs may lie apart, as a share of their norm."""
_TOKENS = 16
_CACHES = ("cache", "past_key_values", "cache_params", "state")
"""What models call what they keep between tokens. Outputs have it, and the next call takes it."""


def outputs_without(full: Outline, plan: FolderPlan) -> Tensor:
    """What the full model computes on made-up tokens without what was removed; float64.

    It lacks blocks, the removed entries of its weights are zero, and statistics run over the channels that are left.

    Args:
        full: the full model without weights; it is changed.
        plan: what was removed.
    """
    if plan.blocks is not None:
        _, layers = stack_of(full.model)
        path, _, last = plan.blocks.stack.rpartition(".")
        setattr(full.model.get_submodule(path), last, nn.ModuleList(layers[index] for index in plan.blocks.kept))
        for name, value in plan.changed.items():
            setattr(full.model.config, name, value)
    maps = plan.index_map.tensors

    def masked(name: str, value: Tensor) -> Tensor:
        return value if maps[name].is_identity else torch.where(maps[name].mask(), value, value.new_zeros(()))

    streamed = StreamedModel(Outline(full.model, plan.shallow.weights), masked)
    with plan.coupling.masked(full.model, plan.index_map):
        return _main_output(streamed(**_inputs(full.model)))


def check_finite(outputs: Tensor, weights: Weights, folder: ModelFolder) -> None:
    """Make sure that there is something to compare a pruned model's outputs with.

    Args:
        outputs: what `outputs_without` gave.
        weights: the tensors of the full model.
        folder: where they are.

    Raises:
        InputError: outputs are not finite; the message names a tensor that holds NaN, where there is one.
    """
    if outputs.isfinite().all():
        return
    numbers = (name for name, tensor in weights.like.items() if tensor.is_floating_point())
    found = next((name for name in numbers if weights.read(name).float().isnan().any()), None)
    why = "its activations overflow" if found is None else f"{found} holds NaN"
    raise InputError(f"{folder.path} gives outputs that are not finite, so that a pruned model can't be checked: {why}")


def difference(expected: Tensor, pruned: StreamedModel, full: Callable[[], Outline]) -> str | None:
    """How the outputs of a pruned model differ from what they should be; None where they are the same.

    The last token is read with a cache of the others, where the model has one.

    Args:
        expected: what `outputs_without` gave.
        pruned: the pruned model.
        full: makes the full model without weights; it is asked whether its own cache changes its outputs.
    """
    try:
        found = _with_cache(pruned)  # first, since it is usually all
        if found is not None and _apart(expected, found) is None:
            return None
        apart = _apart(expected, _main_output(pruned(**_inputs(pruned.model))))
        if apart is not None or found is None:
            return apart
        parent = StreamedModel(full())
        cached = _with_cache(parent)
        plain = _main_output(parent(**_inputs(parent.model)))
        known = cached is not None and _apart(plain, cached) is not None
        return None if known else f"with a cache of the tokens before, {_apart(expected, found)}"
    except Exception as error:  # the model's own code may fail with other sizes
        return f"it does not run ({described(error)})"


def _inputs(model: Any) -> dict[str, Any]:
    return dict(example_inputs(model, _TOKENS)[0])


def _with_cache(pruned: StreamedModel) -> Tensor | None:
    """The outputs where the last token is read alone; None where the model keeps nothing between tokens."""
    inputs = _inputs(pruned.model)
    words = inputs["input_ids"]
    if inputs.keys() != {"input_ids", "use_cache"}:
        return None
    first = pruned(input_ids=words[:, :-1], use_cache=True)
    kept = {name: first[name] for name in _CACHES if name in first.keys()}  # noqa: SIM118  (other names are aliases)
    if not kept or getattr(first, "logits", None) is None:
        return None
    last = pruned(input_ids=words[:, -1:], use_cache=True, **kept)
    return torch.cat([_main_output(first), _main_output(last)], 1)


def _apart(expected: Tensor, found: Tensor) -> str | None:
    if expected.shape != found.shape:
        return f"its outputs have the shape {list(found.shape)} instead of {list(expected.shape)}"
    error, scale = float((expected - found).norm()), float(expected.norm())
    return None if error <= TOLERANCE * scale else f"its outputs differ by {error:.3g} (their norm is {scale:.3g})"


def _main_output(outputs: Any) -> Tensor:
    """The logits that a model returned, or its hidden states where it has no head; float64."""
    found = getattr(outputs, "logits", None)
    return (outputs[0] if found is None else found).double()
