"""Repair a compact model after its full one, by one or several closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hfp.errors import InputError, repeated
from hfp.layers.calling import modes_kept, results
from hfp.pruning.repair import bias, least_squares
from hfp.pruning.repair.batch_norm import STATISTICS, normalisations, recalibrate
from hfp.pruning.repair.computed import Stored
from hfp.pruning.repair.kinds import REPAIRS, USUAL
from hfp.pruning.repair.least_squares import Fit
from hfp.pruning.repair.paired import Pair, paired
from hfp.pruning.repair.reading import Reading, layer_of, read_once
from hfp.pruning.repair.report import LayerRepair, RepairReport
from hfp.pruning.repair.weights import COMPUTED
from hfp.reconstruct import IndexMap


def checked_kinds(kinds: str | Iterable[str] | None) -> tuple[str, ...]:
    """The repairs that are asked for, in order.

    Raises:
        InputError: one that there isn't, or one that is listed twice.
    """
    found: tuple[Any, ...] = ()
    if isinstance(kinds, str) or not isinstance(kinds, Iterable):
        found = () if kinds is None else (kinds,)
    else:
        found = tuple(kinds)
    for kind in found:
        if kind not in REPAIRS:
            raise InputError(f"repair is one of {', '.join(REPAIRS)}, several of them, or None, not {kind!r}")
    if (twice := repeated(found)) is not None:
        raise InputError(f"repair lists {twice} twice; list each once")
    return found


def usual_kinds(data: Any) -> tuple[str, ...]:
    """The repairs that are done unless others are asked for: none without data."""
    return () if data is None else USUAL


def written_by_repairs(model: nn.Module) -> set[str]:
    """The names of a model's tensors that a repair may write.

    These are its parameters, the running statistics, and what computes weights.
    """
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    own |= {name for name, _ in model.named_buffers() if COMPUTED in name.split(".")}
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
        InputError: an unknown kind, one that is listed twice, batches too small for batch-norm.
        CriterionError: there is no batch, or one without samples.
    """
    batches = list(batches) if iter(batches) is batches else batches
    return tuple(_repaired(full, compact, index_map, batches, kind) for kind in checked_kinds(kinds))


def _repaired(
    full: nn.Module, compact: nn.Module, index_map: IndexMap, batches: Iterable[Any], kind: str
) -> RepairReport:
    if kind == "batch-norm":
        names, broken, samples = recalibrate(compact, batches)
        layers = tuple(LayerRepair(name, "running statistics") for name in names)
        return RepairReport(kind, samples, layers, tuple((name, _NOT_FINITE) for name in broken))
    with paired(full, compact, index_map) as pair:
        first, _ = next(pair.forward.batches(islice(batches, 1), full))
        reading = read_once(pair, index_map, first)
        if kind == "bias":
            return _compensated(pair, reading, batches)
        stored = {name: Stored(module) for name, module in pair.weights.modules.items() if name in reading.wanted}
        fits, samples = least_squares.fitted(pair, reading, batches)
    with torch.no_grad():  # weights that are computed are computed anew from here on
        return _finished(pair, reading, fits, stored, samples, first)


def _compensated(pair: Pair, reading: Reading, batches: Iterable[Any]) -> RepairReport:
    done, broken, samples = bias.compensated(pair, reading, batches)
    reasons = dict(reading.reasons)
    for name in reading.wanted - {each.name for each in done}:
        reasons[layer_of(name)] = _NOT_FINITE if name in broken else _NO_CONSTANT
    layers = tuple(LayerRepair(layer_of(each.name), each.constant.name) for each in done)
    return RepairReport("bias", samples, layers, tuple(reasons.items()))


def _finished(
    pair: Pair, reading: Reading, fits: Sequence[Fit], stored: dict[str, Stored], samples: int, first: Any
) -> RepairReport:
    """Solve for the last time, keep what is better than before, and report."""
    done: list[LayerRepair] = []
    reasons = dict(reading.reasons)
    for name in sorted(reading.wanted, key=list(pair.weights.tensors).index):
        parts = [fit for fit in fits if fit.name == name]
        found = _finish(name, parts, pair, stored.get(name))
        if isinstance(found, str):
            _undo(parts, stored.get(name))
            reasons[layer_of(name)] = found
        else:
            done.append(found)
    outputs = _output_errors(pair, reading, first)
    if outputs is not None and outputs[1] > outputs[0]:
        for name in reading.wanted:
            _undo([fit for fit in fits if fit.name == name], stored.get(name))
        reasons |= {layer.name: _WORSE.format(*outputs) for layer in done}
        return RepairReport("least-squares", samples, (), tuple(reasons.items()), (outputs[0], outputs[0]))
    return RepairReport("least-squares", samples, tuple(done), tuple(reasons.items()), outputs)


def _finish(name: str, parts: Sequence[Fit], pair: Pair, stored: Stored | None) -> LayerRepair | str:
    """Write the best weights; return what was won, or why they can't be used."""
    if not parts or any(fit.broken for fit in parts):
        return "the compact model gives it other rows than the full one"
    before = after = variance = 0.0
    for fit in parts:
        solution = fit.solve()
        if stored is not None:
            actual = stored.store(pair.weights.tensors[name].clone())
            if actual is None:
                return (
                    "its weight is computed from other parameters, and nothing says which of these give the fitted one"
                )
            pair.weights.tensors[name].copy_(actual)
            solution = fit.taken()
        errors = fit.errors(solution)
        before, after, variance = before + errors[0], after + errors[1], variance + fit.moments.variance
    if not math.isfinite(after):
        return _NOT_FINITE
    if after > before:
        if stored is not None:
            return "the weights that its parametrization can give are no better than those that pruning left"
        kind = str(parts[0].start.dtype).removeprefix("torch.")
        return f"the fitted weights, rounded to {kind}, are no better than those that pruning left"
    constant = parts[0].constant
    where = "weight" if constant is None else f"weight and {constant.name}"
    share = sum(fit.start.numel() for fit in parts) / pair.weights.tensors[name].numel()
    if share < 1:
        where += f" ({share:.0%} of it; the rest read nothing)"
    error = None if variance == 0 else (before / variance, after / variance)  # as of a single sample
    return LayerRepair(layer_of(name), where, error)


def _undo(parts: Sequence[Fit], stored: Stored | None) -> None:
    for fit in parts:
        fit.undo()
    if stored is not None:
        stored.undo()


def _output_errors(pair: Pair, reading: Reading, first: Any) -> tuple[float, float] | None:
    """What the model's outputs miss of the full model's on the first batch, before and after."""
    with modes_kept(pair.compact):
        pair.compact.eval()
        now = pair.output(pair.compact, first)
    expected, before, after = ([*_floating(each)] for each in (reading.outputs[0], reading.outputs[1], now))
    shapes = [[tensor.shape for tensor in each] for each in (expected, before, after)]
    if not expected or any(each != shapes[0] for each in shapes):
        return None
    scale = sum(_squares(tensor - tensor.mean()) for tensor in expected)
    missed, left = (
        sum(_squares(mine - other) for mine, other in zip(each, expected, strict=True)) for each in (before, after)
    )
    finite = math.isfinite(scale + missed + left) and scale > 0
    return (missed / scale, left / scale) if finite else None


def _floating(output: Any) -> Iterator[Tensor]:
    return (tensor.float() for tensor in results(output) if tensor.is_floating_point())


def _squares(tensor: Tensor) -> float:
    return float(tensor.square().sum(dtype=torch.float64))


_NOT_FINITE = "what it reads or what it should give is not finite"
_NO_CONSTANT = "it has no bias, and what reads it is not one batch-norm layer alone"
_WORSE = (
    "with the fitted weights, the model's outputs on the first batch would miss {1:.1%} of the full ones, not {0:.1%}"
)
