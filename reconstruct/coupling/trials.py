"""Run a smaller model without computing anything, and find the first operation that is not as predicted."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hfp.layers.calling import call_in
from hfp.reconstruct.coupling.replay import replayed
from hfp.reconstruct.coupling.rules.labels import Lines
from hfp.reconstruct.coupling.rules.registry import tensors_in
from hfp.reconstruct.coupling.tracing import CallCounter, CallKey, TracedCall, place_of, running
from hfp.reconstruct.coupling.wiring import CoupledGroup, Gone, Wiring
from hfp.reconstruct.models.attributes import apply
from hfp.reconstruct.models.copying import copied
from hfp.reconstruct.models.twin import computed, like, tensors_of

COPIES = ("clone", "expand")
"""A reshape may call these operations or not, depending on strides, so that the number of their calls differs."""


@dataclass(frozen=True)
class FailedOperation:
    """The first operation of a compact model that is not as predicted.

    Args:
        order: a number that grows along the forward pass.
        call: the operation that failed, or the next one where code between two failed.
        module: the module that was running.
    """

    order: int
    call: TracedCall
    message: str
    module: str


def trial(wiring: Wiring, seed: int) -> Gone:
    """Remove a different share, around 40 %, of every group; linked groups lose the same share."""
    chance = random.Random(seed)
    gone = np.zeros(wiring.trace.labels.count, dtype=bool)
    for names in wiring.linked:
        groups = [wiring.groups[name] for name in names]
        steps = math.gcd(*(len(group.classes) for group in groups))
        unit = math.lcm(1, *(_steps_at_once(wiring, group, steps) for group in groups))
        wanted = min(max(1, round(steps * chance.uniform(0.25, 0.55))), steps - 1)
        cut = min(math.ceil(wanted / unit), (steps - 1) // unit) * unit
        for group in groups:
            gone[chance.sample(group.classes, cut * (len(group.classes) // steps))] = True
    return gone


def _steps_at_once(wiring: Wiring, group: CoupledGroup, steps: int) -> int:
    """Return of how many of a group's equal parts it loses a multiple."""
    unit = wiring.units.get(group.name, 1)
    return unit // math.gcd(unit, len(group.classes) // steps)


def try_out(wiring: Wiring, gone: Gone, example_inputs: Any) -> FailedOperation | None:
    """Run the compact model and return the first operation that differs from the prediction."""
    compact = _compact(wiring, gone)
    checker = _ShapeChecker(wiring, gone)
    try:
        with running(compact) as path, torch.no_grad(), checker:
            checker.path = path
            call_in(wiring.trace.modes, compact, example_inputs)
    except Exception as error:  # noqa: BLE001  (any code of the model may fail with the new sizes)
        return checker.failure(error)
    return None


def _compact(wiring: Wiring, gone: Gone) -> nn.Module:
    """Return the compact model. It is made without an index map, since only its shapes matter."""
    tensors: dict[int, Tensor] = {}
    for name, tensor in tensors_of(wiring.model):
        if id(tensor) not in tensors:
            lines, full = wiring.trace.tensors[name], tensor.detach()
            if tensor.is_meta:
                sizes = zip(lines, tensor.shape, strict=True)
                part = full.new_empty([wiring.left(line, gone, size) for line, size in sizes])
            else:
                part = wiring.kept(full, lines, gone).clone()
            tensors[id(tensor)] = like(tensor, part).requires_grad_(tensor.requires_grad)
    found = copied(wiring.model, {**computed(wiring.model), **tensors})
    apply(found, wiring.attributes(gone))
    return found


class RunWithout(CallCounter):
    """A forward pass from which some classes are gone."""

    def __init__(self, wiring: Wiring, gone: Gone) -> None:
        super().__init__()
        self._wiring = wiring
        self._gone = gone

    def kept(self, tensor: Tensor, lines: Lines) -> Tensor:
        """Return the part of a tensor of the full model that is left."""
        return self._wiring.kept(tensor, lines, self._gone)


class _Surprise(Exception):
    pass


class _ShapeChecker(RunWithout):
    def __init__(self, wiring: Wiring, gone: Gone) -> None:
        super().__init__(wiring, gone)
        self._order = {key: order for order, key in enumerate(wiring.trace.calls)}
        self._last: CallKey | None = None
        self._inside = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        key = self.key(function)
        expected = self._wiring.trace.calls.get(key)
        if expected is not None:
            self._last, self._inside = key, True
        result = self.compute(function, key, args, kwargs)
        if key in self._wiring.trace.decisions:
            results = () if expected is None else expected.outputs
            result = replayed(result, self._wiring.trace.decisions[key], results, [args, kwargs], self.kept)
        if expected is not None and key[1] not in COPIES:
            for output, lines, shape in zip(tensors_in(result), expected.outputs, expected.shapes, strict=False):
                wanted = tuple(
                    self._wiring.left(line, self._gone, size) for line, size in zip(lines, shape, strict=True)
                )
                if tuple(output.shape) != wanted:
                    raise _Surprise(f"its result has shape {list(output.shape)} instead of {list(wanted)}")
        self._inside = False
        return result

    def failure(self, error: Exception) -> FailedOperation:
        message = str(error) if isinstance(error, _Surprise) else f"{type(error).__name__}: {error}"
        done = -1 if self._last is None else self._order[self._last]
        calls = list(self._wiring.trace.calls.values())
        place = done
        while not self._inside and place + 1 < len(calls):  # code between two operations counts for the second
            place += 1
            if calls[place].key[1] not in COPIES:
                break
        return FailedOperation(2 * done + (not self._inside), calls[place], message, self._where(error, calls[place]))

    def _where(self, error: Exception, call: TracedCall) -> str:
        """Return the innermost module that an error came out of; code of its own may fail before what it calls."""
        return call.key[0] if self._inside else place_of(error, call.key[0])
