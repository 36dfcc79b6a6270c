"""Propose changes that may help where a smaller model fails.

Attributes follow a dimension, or dimensions lose the same share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations

import numpy as np
from torch import nn

from hfp.reconstruct.coupling.rules.labels import Array
from hfp.reconstruct.coupling.rules.registry import Stated
from hfp.reconstruct.coupling.tracing import TracedCall
from hfp.reconstruct.coupling.trials import FailedOperation, trial
from hfp.reconstruct.coupling.wiring import Binding, Gone, Wiring
from hfp.reconstruct.models.attributes import is_plain, plain, settings_of

_SUSPECTS = 8  # this many calls before one that differs are suspected
_ANCESTORS = 3  # an attribute is looked for this far above the running module
_WINDOWS = ("kernel", "stride", "padding", "dilation")
"""Words in the names of attributes that count positions, and so never follow channels."""
Link = tuple[Array, Array]


@dataclass(frozen=True)
class Change:
    """What to add to a wiring because of what happened in one module."""

    module: str
    bindings: tuple[Binding, ...] = ()
    links: tuple[tuple[Array, Array], ...] = ()
    fixed: tuple[tuple[Array, str], ...] = ()


def candidates(wiring: Wiring, failure: FailedOperation, seed: int) -> Iterator[Change]:
    """Yield changes that might help, the most likely first."""
    suspects = _Suspects(wiring, failure.call, failure.module, trial(wiring, seed))
    yield from suspects.attributes_that_the_call_states()
    yield from suspects.attributes_around()
    yield from suspects.links_of_dimensions()
    yield from suspects.two_attributes_around()
    yield from suspects.links_beside_attributes()
    yield from suspects.attributes_of_other_modules()


@dataclass(frozen=True)
class _Suspects:
    """The places where a failure may come from: a call, the running module, and the classes that the trial removed."""

    wiring: Wiring
    call: TracedCall
    module: str
    gone: Gone

    @cached_property
    def stated(self) -> tuple[Binding, ...]:
        """Return the attributes that hold a size that the call was given."""
        return tuple(_bindings(self.wiring, self.module, _changed(self.wiring, self.gone, _written(self.call))))

    @cached_property
    def nearby(self) -> list[tuple[int, Array]]:
        """Return the dimensions inside the module that the trial makes smaller."""
        return _changed(self.wiring, self.gone, _sizes_in(self.wiring, self.module))

    @cached_property
    def around(self) -> tuple[Binding, ...]:
        """Return the attributes of the module and those around it that hold a size of a dimension nearby."""
        return tuple(_bindings(self.wiring, self.module, self.nearby))

    @cached_property
    def links(self) -> tuple[Link, ...]:
        """Return the dimensions that the call may take to be tied."""
        return tuple(_links(self.wiring, self.call, self.nearby))

    def attributes_that_the_call_states(self) -> Iterator[Change]:
        """Let one stated attribute follow, then all of them; others may hold the same number by chance."""
        yield from (Change(self.module, bindings=(binding,)) for binding in self.stated)
        if len(self.stated) > 1:
            yield Change(self.module, bindings=self.stated)

    def attributes_around(self) -> Iterator[Change]:
        """Let one attribute with the size of a dimension nearby follow that dimension."""
        for each in self.nearby:
            bindings = _bindings(self.wiring, self.module, [each])
            yield from (Change(self.module, bindings=(binding,)) for binding in bindings)

    def two_attributes_around(self) -> Iterator[Change]:
        """Let two attributes follow at once, as where one is divided by the other."""
        alone = [change.bindings[0] for change in self.attributes_around()]
        for pair in combinations(alone, 2):
            if len({(binding.module, binding.attribute, binding.position) for binding in pair}) > 1:
                yield Change(self.module, bindings=pair)

    def links_of_dimensions(self) -> Iterator[Change]:
        """Let two dimensions lose the same share, with the stated attributes or without."""
        for link in self.links:
            if self.stated:
                yield Change(self.module, bindings=self.stated, links=(link,))
            yield Change(self.module, links=(link,))

    def links_beside_attributes(self) -> Iterator[Change]:
        """Let two dimensions lose the same share, and all attributes around follow."""
        if self.around:
            yield from (Change(self.module, bindings=self.around, links=(link,)) for link in self.links)

    def attributes_of_other_modules(self) -> Iterator[Change]:
        """Let all attributes of the modules inside follow, or those of all modules above."""
        inside = tuple(_bindings(self.wiring, self.module, self.nearby, _children(self.wiring, self.module)))
        if inside:
            yield Change(self.module, bindings=inside)
        above = tuple(_bindings(self.wiring, self.module, self.nearby, _around(self.module, len(self.module))))
        if len(above) > len(self.around):
            yield Change(self.module, bindings=above)


def left_alone(wiring: Wiring, failure: FailedOperation, gone: Gone) -> Change:
    """Fix the dimensions that the failed operation changes where these classes are gone."""
    call = failure.call
    read: list[Stated] = [
        (len(line), line) for lines in (*call.inputs, *call.outputs) for line in lines if line is not None
    ]
    around = (_sizes_in(wiring, place) for place in _around(failure.module, failure.module.count(".") + 2))
    for sizes in chain((_written(call), read), around):
        changed = _changed(wiring, gone, sizes)
        if changed:
            break
    reason = (
        f"{failure.module or 'the model'}: {call.key[1]} depends on its size ({failure.message.splitlines()[0][:160]})"
    )
    return Change(failure.module, fixed=tuple((line, reason) for _, line in changed))


def cut_lines(wiring: Wiring, call: TracedCall, gone: Gone) -> list[Array]:
    """Return the dimensions of a call's inputs and outputs that lose channels."""
    lines = (line for each in (*call.inputs, *call.outputs) for line in each if line is not None)
    return [line for line in lines if wiring.left(line, gone) < len(line)]


def suspects(wiring: Wiring, call: TracedCall, gone: Gone, alone: bool) -> Iterator[Change]:
    """Yield dimensions to leave alone where a call differs that has none of them.

    Code may have computed with their size. They are those of the calls before it, the nearest first, and last those of
    all these calls together. A change is for all modules like the call's; where this one is `alone` of its kind, for
    all that are like the module whose call is suspected.
    """
    before = list(wiring.trace.calls.values())[: list(wiring.trace.calls).index(call.key)]
    tried: set[bytes] = set()
    found: list[Change] = []
    for earlier in reversed(before):
        lines = {wiring.classes.of[line].tobytes(): line for line in cut_lines(wiring, earlier, gone)}
        new = [line for key, line in lines.items() if key not in tried]
        tried.update(lines)
        if new:
            reason = f"{call.key[0] or 'the model'}: {call.key[1]} depends on the size of this dimension"
            module = earlier.key[0] if alone else call.key[0]
            found.append(Change(module, fixed=tuple((line, reason) for line in new)))
            yield found[-1]
        if len(found) == _SUSPECTS:
            break
    if len(found) > 1:
        yield Change(call.key[0], fixed=tuple(pair for change in found for pair in change.fixed))


def _changed(wiring: Wiring, gone: Gone, stated: list[Stated]) -> list[tuple[int, Array]]:
    """Return the (full size, dimension) among these that the trial makes smaller, each once."""
    found: dict[tuple[int, bytes], tuple[int, Array]] = {}
    for size, line in stated:
        if line is not None and wiring.left(line, gone) != size:
            found.setdefault((size, wiring.classes.of[line].tobytes()), (size, line))
    return list(found.values())


def _written(call: TracedCall) -> list[Stated]:
    """Return the sizes that a call was given, and those of its results, which may have been given too."""
    results = [
        pair for shape, lines in zip(call.shapes, call.outputs, strict=True) for pair in zip(shape, lines, strict=True)
    ]
    return [(size, line) for size, line in (*call.stated, *results) if line is not None]


def _sizes_in(wiring: Wiring, module: str) -> list[Stated]:
    """Return the sizes of all dimensions that operations inside a module read or write."""
    prefix = f"{module}." if module else ""
    calls = [c for key, c in wiring.trace.calls.items() if key[0] == module or key[0].startswith(prefix)]
    return [(len(line), line) for c in calls for lines in (*c.inputs, *c.outputs) for line in lines if line is not None]


def _bindings(
    wiring: Wiring, module: str, changed: list[tuple[int, Array]], places: list[str] | None = None
) -> list[Binding]:
    """Return the free attributes that hold one of the sizes.

    They are those of the module and of the modules around it, or of other places.
    """
    bound = set(wiring.bound)
    found: list[Binding] = []
    for name in _around(module, _ANCESTORS) if places is None else places:
        for attribute, position, value in numbers(wiring.model.get_submodule(name)):
            if "." in attribute and name != module:
                continue  # code reads the settings of the module that it belongs to
            place = (name, attribute, position)
            line = next((line for size, line in changed if size == value), None)
            if line is not None and place not in bound:
                bound.add(place)
                found.append(Binding(*place, line))
    return found


def _children(wiring: Wiring, module: str) -> list[str]:
    """Return the modules directly inside one, whose methods its code may call.

    PyTorch's own are left out, since they have no sizes to bind.
    """
    found = wiring.model.get_submodule(module).named_children()
    own = [name for name, child in found if not type(child).__module__.startswith("torch.")]
    return [f"{module}.{name}" if module else name for name in own]


def _around(module: str, ancestors: int) -> list[str]:
    parts = module.split(".") if module else []
    return [".".join(parts[:end]) for end in range(len(parts), max(len(parts) - ancestors, -1), -1)]


def numbers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """Yield (attribute, position in it, value) of every public integer that may count channels.

    It may be alone, or in a list or tuple, and be kept by the module or by an object that the module keeps.
    """
    yield from _numbers("", module)
    for name, kept in settings_of(module):
        yield from _numbers(f"{name}.", kept)


def _numbers(prefix: str, holder: object) -> Iterator[tuple[str, int | None, int]]:
    for attribute, value in vars(holder).items():
        value = plain(value)
        if attribute.startswith("_") or any(word in attribute for word in _WINDOWS) or not is_plain(value):
            continue
        items = enumerate(value) if isinstance(value, list | tuple) else [(None, value)]
        yield from ((prefix + attribute, position, item) for position, item in items if type(item) is int)


def _links(wiring: Wiring, call: TracedCall, nearby: list[tuple[int, Array]]) -> Iterator[Link]:
    """Yield pairs of dimensions that a reshape may take to be tied.

    One is a dimension that it changes, and the other is as long as several of it.
    """
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
