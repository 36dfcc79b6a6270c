"""Find the sizes that a model's code has written down, by trying smaller models on the meta device.

Code such as `x.reshape(b, n, 3, self.num_heads, self.head_dim)` states sizes. When heads are removed, `num_heads` must
follow. Which
attributes must follow which dimension is found by trial: remove some of every group, run the compact model without
    computing
anything, and compare every operation's shapes with what the trace predicts. The first one that differs names the place:
an attribute there that holds the stated size is made to follow, or two groups are made to lose the same share, or,
where nothing helps, the dimension is left alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from hfp.layers.calling import call_in
from hfp.reconstruct.coupling.rules.labels import Array, Line
from hfp.reconstruct.coupling.rules.registry import Stated, tensors_in
from hfp.reconstruct.coupling.tracing import CallCounter, CallKey, TracedCall, running
from hfp.reconstruct.coupling.wiring import Binding, Gone, Wiring
from hfp.reconstruct.models.attributes import is_plain, plain
from hfp.reconstruct.models.compact import compact_model

_TRIALS = 2
_COPIES = ("clone", "expand")  # whether a reshape copies depends on strides; how often one is called differs
_ANCESTORS = 3  # how far above the running module an attribute is looked for


@dataclass(frozen=True)
class Failure:
    """The first operation of a compact model that is not as predicted.

    order: grows along the forward pass. call: the operation that failed, or the next one where code between two failed.
    """

    order: int
    call: TracedCall
    message: str

    @property
    def module(self) -> str:
        """The module that was running."""
        return self.call.key[0]


@dataclass(frozen=True)
class Change:
    """What to add to a wiring because of what happened in one module."""

    module: str
    bindings: tuple[Binding, ...] = ()
    links: tuple[tuple[Array, Array], ...] = ()
    fixed: tuple[tuple[Array, str], ...] = ()


def fit(wiring: Wiring, example_inputs: Any) -> Wiring:
    """Bind attributes, link groups and leave dimensions alone until compact models run as predicted.

    Args:
        wiring: of a model on the meta device.
        example_inputs: on the meta device.
    """
    for seed in range(_TRIALS):
        while True:
            failure = try_out(wiring, trial(wiring, seed), example_inputs)
            if failure is None:
                break
            wiring = _repair(wiring, failure, seed, example_inputs)
    return wiring


def trial(wiring: Wiring, seed: int) -> Gone:
    """Remove a different share, around 40 %, of every group; linked groups lose the same."""
    chance = random.Random(seed)
    gone = np.zeros(wiring.trace.labels.count, dtype=bool)
    for names in wiring.linked:
        groups = [wiring.groups[name] for name in names]
        steps = math.gcd(*(len(group.classes) for group in groups))
        cut = min(max(1, round(steps * chance.uniform(0.25, 0.55))), steps - 1)
        for group in groups:
            gone[chance.sample(group.classes, cut * (len(group.classes) // steps))] = True
    return gone


def try_out(wiring: Wiring, gone: Gone, example_inputs: Any) -> Failure | None:
    """Run the compact model and return the first operation that differs from the prediction."""
    compact = compact_model(wiring.model, wiring.index_map(gone))
    checker = _ShapeChecker(wiring, gone)
    try:
        with running(compact) as path, torch.no_grad(), checker:
            checker.path = path
            call_in(wiring.trace.modes, compact, example_inputs)
    except Exception as error:  # noqa: BLE001  (any code of the model may stumble over the new sizes)
        return checker.failure(error)
    return None


class _Surprise(Exception):
    pass


class _ShapeChecker(CallCounter):
    def __init__(self, wiring: Wiring, gone: Gone) -> None:
        super().__init__()
        self._wiring = wiring
        self._gone = gone
        self._order = {key: order for order, key in enumerate(wiring.trace.calls)}
        self._last: CallKey | None = None
        self._inside = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        key = self.key(function)
        expected = self._wiring.trace.calls.get(key)
        if expected is not None:
            self._last, self._inside = key, True
        result = function(*args, **(kwargs or {}))
        if expected is not None and key[1] not in _COPIES:
            for output, lines, shape in zip(tensors_in(result), expected.outputs, expected.shapes, strict=False):
                wanted = tuple(
                    self._wiring.left(line, self._gone, size) for line, size in zip(lines, shape, strict=True)
                )
                if tuple(output.shape) != wanted:
                    raise _Surprise(f"its result has shape {list(output.shape)} instead of {list(wanted)}")
        self._inside = False
        return result

    def failure(self, error: Exception) -> Failure:
        message = str(error) if isinstance(error, _Surprise) else f"{type(error).__name__}: {error}"
        done = -1 if self._last is None else self._order[self._last]
        calls = list(self._wiring.trace.calls.values())
        place = done
        while not self._inside and place + 1 < len(calls):  # code between two operations leads to the second
            place += 1
            if calls[place].key[1] not in _COPIES:
                break
        return Failure(2 * done + (not self._inside), calls[place], message)


def _repair(wiring: Wiring, failure: Failure, seed: int, example_inputs: Any) -> Wiring:
    """A wiring that gets further than the failure; what helps is done in all modules that are alike."""
    for change in _changes(wiring, failure, seed):
        for candidate in (_applied(wiring, change, _twins(wiring, failure.module)), _applied(wiring, change, [])):
            if _solvable(candidate):
                after = try_out(candidate, trial(candidate, seed), example_inputs)
                if after is None or after.order > failure.order:
                    return candidate
    return _applied(wiring, _left_alone(wiring, failure, seed), _twins(wiring, failure.module, failure.call))


def _changes(wiring: Wiring, failure: Failure, seed: int) -> Iterator[Change]:
    """What might help, most likely first."""
    gone = trial(wiring, seed)
    direct = _changed(wiring, gone, _written(failure.call))
    nearby = _changed(wiring, gone, _sizes_in(wiring, failure.module))
    stated = _bindings(wiring, failure.module, direct)
    if stated:
        yield Change(failure.module, bindings=tuple(stated))
    if len(stated) > 1:
        yield from (Change(failure.module, bindings=(binding,)) for binding in stated)
    for size, line in nearby:
        yield from (Change(failure.module, bindings=(b,)) for b in _bindings(wiring, failure.module, [(size, line)]))
    links = list(_links(wiring, failure.call, nearby))
    for link in links:
        if stated:
            yield Change(failure.module, bindings=tuple(stated), links=(link,))
        yield Change(failure.module, links=(link,))
    around = tuple(_bindings(wiring, failure.module, nearby))
    if around:
        yield from (Change(failure.module, bindings=around, links=(link,)) for link in links)
    inside = tuple(_bindings(wiring, failure.module, nearby, _children(wiring, failure.module)))
    if inside:
        yield Change(failure.module, bindings=inside)
    above = tuple(_bindings(wiring, failure.module, nearby, _around(failure.module, len(failure.module))))
    if len(above) > len(around):
        yield Change(failure.module, bindings=above)


def _changed(wiring: Wiring, gone: Gone, stated: list[Stated]) -> list[tuple[int, Array]]:
    """The (full size, dimension) among these that the trial makes smaller, each once."""
    found: dict[tuple[int, bytes], tuple[int, Array]] = {}
    for size, line in stated:
        if line is not None and wiring.left(line, gone) != size:
            found.setdefault((size, wiring.classes.of[line].tobytes()), (size, line))
    return list(found.values())


def _written(call: TracedCall) -> list[Stated]:
    """The sizes that a call was given, and those of its results, which may have been given too."""
    results = [
        pair for shape, lines in zip(call.shapes, call.outputs, strict=True) for pair in zip(shape, lines, strict=True)
    ]
    return [(size, line) for size, line in (*call.stated, *results) if line is not None]


def _sizes_in(wiring: Wiring, module: str) -> list[Stated]:
    """The sizes of all dimensions that operations inside a module read or write."""
    prefix = f"{module}." if module else ""
    calls = [c for key, c in wiring.trace.calls.items() if key[0] == module or key[0].startswith(prefix)]
    return [(len(line), line) for c in calls for lines in (*c.inputs, *c.outputs) for line in lines if line is not None]


def _bindings(
    wiring: Wiring, module: str, changed: list[tuple[int, Array]], places: list[str] | None = None
) -> list[Binding]:
    """Attributes of the module and those around it, or of other places, that hold one of the sizes and are free."""
    bound = {(binding.module, binding.attribute, binding.position) for binding in wiring.bindings}
    found: list[Binding] = []
    for name in _around(module, _ANCESTORS) if places is None else places:
        for attribute, position, value in _numbers(wiring.model.get_submodule(name)):
            place = (name, attribute, position)
            line = next((line for size, line in changed if size == value), None)
            if line is not None and place not in bound:
                bound.add(place)
                found.append(Binding(*place, line))
    return found


def _children(wiring: Wiring, module: str) -> list[str]:
    """Modules directly inside one, whose methods its code may call; PyTorch's own have no sizes to bind."""
    found = wiring.model.get_submodule(module).named_children()
    own = [name for name, child in found if not type(child).__module__.startswith("torch.")]
    return [f"{module}.{name}" if module else name for name in own]


def _around(module: str, ancestors: int) -> list[str]:
    parts = module.split(".") if module else []
    return [".".join(parts[:end]) for end in range(len(parts), max(len(parts) - ancestors, -1), -1)]


def _numbers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """(attribute, position in it, value) of every public integer, alone or in a list or tuple."""
    for attribute, value in vars(module).items():
        value = plain(value)
        if attribute.startswith("_") or not is_plain(value):
            continue
        items = enumerate(value) if isinstance(value, list | tuple) else [(None, value)]
        yield from ((attribute, position, item) for position, item in items if type(item) is int)


def _links(wiring: Wiring, call: TracedCall, nearby: list[tuple[int, Array]]) -> Iterator[tuple[Array, Array]]:
    """Pairs of dimensions that a reshape may take to be tied: one that it changes, and one as long as several of it."""
    lines = [line for each in (*call.inputs, *call.outputs) for line in each if line is not None]
    free = [line for line in lines if wiring.classes.reason(line) is None]
    sizes = {
        math.prod(size for size in shape[start:end])
        for shape in call.shapes
        for start in range(len(shape))
        for end in range(start + 1, len(shape) + 1)
    }
    for size, line in nearby:
        if size in sizes:
            for factor in free:
                if len(factor) != size or not np.array_equal(factor, line):
                    yield line, factor


def _left_alone(wiring: Wiring, failure: Failure, seed: int) -> Change:
    """Fix the dimensions that the failed operation changes."""
    gone = trial(wiring, seed)
    call = failure.call
    read: list[Stated] = [
        (len(line), line) for lines in (*call.inputs, *call.outputs) for line in lines if line is not None
    ]
    for sizes in (_written(call), read, _sizes_in(wiring, failure.module), _sizes_in(wiring, "")):
        changed = _changed(wiring, gone, sizes)
        if changed:
            break
    reason = (
        f"{failure.module or 'the model'}: {call.key[1]} depends on its size ({failure.message.splitlines()[0][:160]})"
    )
    return Change(failure.module, fixed=tuple((line, reason) for _, line in changed))


def _solvable(wiring: Wiring) -> bool:
    """Whether linked groups have a common step."""
    return all(math.gcd(*(len(wiring.groups[name].classes) for name in names)) > 1 for names in wiring.linked)


Place = tuple[str, str, int, str, int, int]
"""Where a dimension occurs, relative to a module: (path below it, operation, count, which list, tensor, dimension)."""


def _twins(wiring: Wiring, module: str, call: TracedCall | None = None) -> list[str]:
    """Other modules of the same class; given a call, only those in which it has the same shapes."""
    kind = type(wiring.model.get_submodule(module))
    found = [name for name, other in wiring.model.named_modules() if type(other) is kind and name != module]
    if call is None:
        return found
    alike = ((name, wiring.trace.calls.get((name, *call.key[1:]))) for name in found)
    return [name for name, other in alike if other is not None and other.shapes == call.shapes]


def _applied(wiring: Wiring, change: Change, twins: list[str]) -> Wiring:
    """The wiring with a change, and with the same change in the twins of its module, where it makes sense."""
    changes = [change, *(found for name in twins if (found := _transferred(wiring, change, name)))]
    taken = {(b.module, b.attribute, b.position) for b in wiring.bindings}
    bindings: list[Binding] = []
    for binding in (binding for each in changes for binding in each.bindings):
        if (binding.module, binding.attribute, binding.position) not in taken:
            taken.add((binding.module, binding.attribute, binding.position))
            bindings.append(binding)
    return wiring.extended(
        bindings,
        (link for each in changes for link in each.links),
        (fixed for each in changes for fixed in each.fixed),
    )


def _transferred(wiring: Wiring, change: Change, twin: str) -> Change | None:
    """The same change in another module; None where the module is not like it."""

    def moved(line: Array) -> Array:
        place = _place(wiring, change.module, line)
        found = None if place is None else _at(wiring, twin, place)
        if found is None:
            raise LookupError(twin)
        return found

    def named(name: str) -> str:
        if name.startswith(f"{change.module}."):
            return twin + name[len(change.module) :]
        depth = len(change.module.split(".")) - len(name.split(".") if name else [])
        return ".".join(twin.split(".")[: len(twin.split(".")) - depth])

    try:
        bindings = [replace(b, module=named(b.module), line=moved(b.line)) for b in change.bindings]
        links = tuple((moved(first), moved(second)) for first, second in change.links)
        fixed = tuple((moved(line), reason) for line, reason in change.fixed)
    except LookupError:
        return None
    return Change(twin, tuple(b for b in bindings if _holds(wiring, b)), links, fixed)


def _holds(wiring: Wiring, binding: Binding) -> bool:
    """Whether the attribute exists and has the size of the dimension."""
    module = wiring.model.get_submodule(binding.module)
    return (binding.attribute, binding.position, len(binding.line)) in set(_numbers(module))


def _place(wiring: Wiring, module: str, line: Array) -> Place | None:
    prefix = f"{module}." if module else ""
    for key, each in wiring.trace.calls.items():
        if key[0] == module or key[0].startswith(prefix):
            for kind, tensor, dim, found in _lines(each):
                if found is line:
                    return (key[0][len(module) :], *key[1:], kind, tensor, dim)
    return None


def _at(wiring: Wiring, module: str, place: Place) -> Line:
    call = wiring.trace.calls.get((module + place[0], *place[1:3]))
    found = (line for *where, line in _lines(call) if tuple(where) == place[3:]) if call else iter(())
    return next(found, None)


def _lines(call: TracedCall) -> Iterator[tuple[str, int, int, Line]]:
    yield from (("stated", 0, index, line) for index, (_, line) in enumerate(call.stated))
    for kind, tensors in (("in", call.inputs), ("out", call.outputs)):
        yield from ((kind, index, dim, line) for index, lines in enumerate(tensors) for dim, line in enumerate(lines))
