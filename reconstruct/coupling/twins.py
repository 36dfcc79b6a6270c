"""Make a change to a wiring, and the same change in all modules that are alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hfp.reconstruct.coupling.changes import Change, numbers
from hfp.reconstruct.coupling.rules.labels import Array, Line
from hfp.reconstruct.coupling.tracing import TracedCall
from hfp.reconstruct.coupling.wiring import Binding, Wiring

Place = tuple[str, str, int, str, int, int]
"""The place of a dimension relative to a module is (path below it, operation, count, which list, tensor, dimension)."""


def twins_of(wiring: Wiring, module: str, call: TracedCall | None = None) -> list[str]:
    """Return other modules of the same class; given a call, only those in which it has the same shapes."""
    kind = type(wiring.model.get_submodule(module))
    found = [name for name, other in wiring.model.named_modules() if type(other) is kind and name != module]
    if call is None:
        return found
    alike = ((name, wiring.trace.calls.get((name, *call.key[1:]))) for name in found)
    return [name for name, other in alike if other is not None and other.shapes == call.shapes]


def applied(wiring: Wiring, change: Change, twins: list[str]) -> Wiring:
    """Return the wiring with a change, and with the same change in the twins of its module where it makes sense."""
    changes = [change, *(found for name in twins if (found := _transferred(wiring, change, name)))]
    taken = set(wiring.bound)
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
    """Return the same change in another module; None where the module is not like it."""

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
    """Return whether the attribute exists and has the size of the dimension."""
    module = wiring.model.get_submodule(binding.module)
    return (binding.attribute, binding.position, len(binding.line)) in set(numbers(module))


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
