"""Repair a compact model after its full one, by one or several closed forms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn

from hfp.errors import InputError
from hfp.importance.capture.batches import ForwardPass
from hfp.layers.calling import modes_kept
from hfp.pruning.repair import bias, least_squares
from hfp.pruning.repair.batch_norm import STATISTICS, normalisations, recalibrate
from hfp.pruning.repair.constants import constants
from hfp.pruning.repair.kinds import REPAIRS
from hfp.pruning.repair.readers import left_alone, readers
from hfp.pruning.repair.report import LayerRepair, RepairReport
from hfp.pruning.repair.rows import supported
from hfp.reconstruct import IndexMap


def checked_kinds(kinds: str | Iterable[str] | None) -> tuple[str, ...]:
    """The repairs that are asked for, in order.

    Raises:
        InputError: one that there isn't.
    """
    found = () if kinds is None else (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in found:
        if kind not in REPAIRS:
            raise InputError(f"repair is one of {', '.join(REPAIRS)}, several of them, or None, not {kind!r}")
    return found


def written_by_repairs(model: nn.Module) -> set[str]:
    """The names of a model's tensors that a repair may write: its parameters and the running statistics."""
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return own | {f"{name}.{key}".lstrip(".") for name in normalisations(model) for key in STATISTICS}


def repair(
    full: nn.Module, compact: nn.Module, index_map: IndexMap, batches: Iterable[Any], kinds: str | Iterable[str]
) -> tuple[RepairReport, ...]:
    """Repair a compact model in place, by each kind in the order given.

    Args:
        full: what it was pruned from; not changed.
        compact: the pruned model; weights, biases and batch-norm statistics change, shapes and names don't.
        index_map: its place in the full model.
        batches: (inputs, target) pairs, targets unused, that can be iterated again for each kind; or what the model
            is called with.
        kinds: of `REPAIRS`.

    Raises:
        InputError: an unknown kind, batches too small for batch-norm.
        CriterionError: there is no batch, or one without samples.
    """
    batches = list(batches) if iter(batches) is batches else batches
    return tuple(_repaired(full, compact, index_map, batches, kind) for kind in checked_kinds(kinds))


def _repaired(
    full: nn.Module, compact: nn.Module, index_map: IndexMap, batches: Iterable[Any], kind: str
) -> RepairReport:
    if kind == "batch-norm":
        names, samples = recalibrate(compact, batches)
        return RepairReport(kind, samples, tuple(LayerRepair(name, "running statistics") for name in names))
    run = _run_once(compact, batches)
    layers = readers(full, compact, index_map)
    reasons = left_alone(compact, layers, run)
    usable = [layer for layer in layers if layer.name not in reasons]
    places = constants(compact, [layer.name for layer in usable], run)
    if kind == "bias":
        reasons |= {layer.name: _NO_CONSTANT for layer in usable if layer.name not in places}
        usable = [layer for layer in usable if layer.name in places]
        done, samples = bias.compensate(full, compact, usable, places, batches)
    else:
        reasons |= {layer.name: _NOT_PLAIN for layer in usable if not supported(layer.compact)}
        usable = [layer for layer in usable if supported(layer.compact)]
        done, samples = least_squares.reconstruct(full, compact, usable, places, batches)
        kept = {layer.name: str(layer.compact.weight.dtype).removeprefix("torch.") for layer in usable}
        reasons |= {name: _ROUNDED.format(kept[name]) for name in kept.keys() - {repaired.name for repaired in done}}
    return RepairReport(kind, samples, tuple(done), tuple(reasons.items()))


_NO_CONSTANT = "it has no bias, and what reads it is not one batch-norm layer alone"
_ROUNDED = "the fitted weights, rounded to {}, are no better than those that pruning left"
_NOT_PLAIN = "its outputs are no plain product of inputs and weights"


def _run_once(model: nn.Module, batches: Iterable[Any]) -> Callable[[], Any]:
    """A function that runs the model on the first batch, in evaluation mode."""

    def run() -> Any:
        passing = ForwardPass()
        with modes_kept(model), torch.no_grad():
            model.eval()
            for batch, _ in islice(passing.batches(batches, model), 1):
                return passing.output(model, batch)
        return None

    return run
