"""Run a model once and follow every channel through every operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hfp.layers.calling import call_in, random_state_kept, results, unfused
from hfp.layers.flops import formula_of
from hfp.reconstruct.coupling import replay
from hfp.reconstruct.coupling.costs import CountedCall, counted_call
from hfp.reconstruct.coupling.meta_results import meta_result
from hfp.reconstruct.coupling.rules.labels import Labels, Line, Lines
from hfp.reconstruct.coupling.rules.registry import (
    OPERATION_RULES,
    Notes,
    Operation,
    OperationRule,
    Stated,
    opaque,
    pointwise,
    tensors_in,
)
from hfp.reconstruct.errors import MapError
from hfp.reconstruct.models.copying import copied
from hfp.reconstruct.models.twin import tensors_of

CallKey = tuple[str, str, int]
"""A call is named by its module, its operation, and how often this module has called this operation."""

_ATTENTION = F.scaled_dot_product_attention
_PLACE = "_hfp_place"
_SYNONYMS = {"_unsafe_view": "view", "reshape": "view", "_reshape_alias": "view"}


@dataclass(frozen=True)
class TracedCall:
    """One operation of a trace.

    Args:
        inputs: the lines of its tensor arguments.
        outputs: the lines of its results.
        shapes: the shapes of its results.
        stated: the sizes that it was given as numbers.
        reduces: whether it computes a statistic over a dimension that can lose indices.
    """

    key: CallKey
    inputs: tuple[Lines, ...]
    outputs: tuple[Lines, ...]
    shapes: tuple[tuple[int, ...], ...]
    stated: tuple[Stated, ...]
    reduces: bool


@dataclass(frozen=True)
class Trace:
    """What one forward pass says about a model's indices.

    Args:
        tensors: the lines of the state's tensors and of the parameters, by name.
        calls: every operation, in order.
        channels: the lines (in, out) of a convolution, by module.
        groups: the line of a module's groups.
        unknown: the operations that no rule knows.
        modes: the passes that were followed, each in training or evaluation mode.
        decisions: what calls drew or decided (`replay`); nothing on the meta device.
        counted: the convolutions and products of the pass in evaluation mode.
    """

    labels: Labels
    tensors: Mapping[str, Lines]
    calls: Mapping[CallKey, TracedCall]
    channels: Mapping[str, tuple[Line, Line]]
    groups: Mapping[str, Line]
    unknown: frozenset[str]
    modes: tuple[bool, ...] = (False,)
    decisions: Mapping[CallKey, Any] = field(default_factory=dict)
    counted: tuple[CountedCall, ...] = ()

    @cached_property
    def used(self) -> NDArray[np.bool_]:
        """Return for every label whether an operation touched it, `[labels]`."""
        used = np.zeros(self.labels.count, dtype=bool)
        for each in self.calls.values():
            for line in (line for lines in (*each.inputs, *each.outputs) for line in lines if line is not None):
                used[line] = True
        return used

    def uses(self, tensor: str) -> bool:
        """Return whether an operation read this tensor of the model."""
        lines = [line for line in self.tensors[tensor] if line is not None]
        return not lines or any(self.used[line].any() for line in lines)


def trace(model: nn.Module, example_inputs: Any, modes: tuple[bool, ...] = (False,)) -> Trace:
    """Follow the channels of `model` through its forward pass, without gradients.

    Args:
        model: the model; it is not changed. On the meta device nothing is computed.
        example_inputs: what the model is called with. A tuple or list is unpacked into arguments, a dictionary into
            keywords.
        modes: one pass is made for each, in training (True) or evaluation mode (False).

    Raises:
        MapError: the model holds compiled parts, which cannot be followed, or returns no tensor.
    """
    model = copied(model, {})  # a forward pass may leave caches behind
    follower = _Follower(model)
    with running(model) as path, torch.no_grad(), _ScaledAttention(follower), follower:
        follower.path = path
        output = call_in(modes, model, example_inputs)
    outputs = results(output)
    if not outputs:
        raise MapError(
            f"the model returned a {type(output[0]).__name__} without tensors: no telling which sizes must stay"
        )
    for tensor in outputs:
        follower._fix_choice(tensor)
        for line in follower.lines(tensor):
            follower.labels.fix(line, "it is an output of the model")
    return Trace(
        follower.labels,
        follower.tensors,
        follower.calls,
        follower.channels,
        follower.groups,
        frozenset(follower.unknown),
        modes,
        follower.decisions,
        tuple(follower.counted),
    )


def check_followable(model: nn.Module) -> None:
    """Raise a `MapError` if parts of the model are compiled, so that nothing inside them can be followed."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, torch.jit.ScriptModule) or kind == "OptimizedModule":
            raise MapError(f"{name or 'the model'} is compiled ({kind}); prune the plain module and compile the result")


@contextmanager
def running(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules that are running, innermost last.

    Attention runs as plain products everywhere, and random numbers are those of the same seed in every run. The model
    is one that nobody else runs meanwhile.
    """
    path: list[str] = []
    modules = list(model.named_modules())
    before = [(module, vars(module).get("forward")) for _, module in modules]
    for name, module in modules:
        vars(module)["forward"] = _noted(module.forward, name, path)
    try:
        with unfused(model), random_state_kept(seed=0):
            yield path
    finally:
        for module, own in before:
            if own is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = own


def _noted(forward: Callable[..., Any], name: str, path: list[str]) -> Callable[..., Any]:
    """The same function, during which `path` ends with the name; hooks would make every call of a module slower."""

    def noted(*args: Any, **kwargs: Any) -> Any:
        path.append(name)
        try:
            return forward(*args, **kwargs)
        except Exception as error:
            vars(error).setdefault(_PLACE, name)
            raise
        finally:
            path.pop()

    noted.__wrapped__ = forward  # type: ignore[attr-defined]  # code that asks for the signature gets the right one
    return noted


def place_of(error: Exception, default: str) -> str:
    """Return the innermost running module that an error came out of; the default where none was running."""
    return str(vars(error).get(_PLACE, default))


class CallCounter(TorchDispatchMode):
    """Names the calls of a forward pass as `CallKey`s."""

    def __init__(self) -> None:
        super().__init__()
        self.path: list[str] = []
        self._counts: Counter[tuple[str, str]] = Counter()

    def key(self, function: Any) -> CallKey:
        """Return the name of the call that is under way."""
        name = function._schema.name.split("::")[1]
        name = name[:-1] if name.endswith("_") else name
        place = (self.path[-1] if self.path else "", _SYNONYMS.get(name, name))
        self._counts[place] += 1
        return (*place, self._counts[place])

    def compute(self, function: Any, key: CallKey, args: Any, kwargs: Any) -> Any:
        """Return the result of a call, in which what would be uninitialised memory is zero."""
        result = meta_result(function, key[1], args, kwargs)
        if result is None:
            result = function(*args, **(kwargs or {}))
        if key[1] in replay.UNINITIALISED:
            result.zero_()
        return result


class ShapesOnly(CallCounter):
    """Runs a model on the meta device without PyTorch's slow results."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.compute(function, self.key(function), args, kwargs)


class _Follower(CallCounter):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.labels = Labels()
        self.calls: dict[CallKey, TracedCall] = {}
        self.channels: dict[str, tuple[Line, Line]] = {}
        self.groups: dict[str, Line] = {}
        self.unknown: set[str] = set()
        self.tensors: dict[str, Lines] = {}
        self.decisions: dict[CallKey, Any] = {}
        self.counted: list[CountedCall] = []
        self._model = model
        for name, tensor in tensors_of(model):
            if not hasattr(tensor, "_hfp_lines"):
                # tables of integers index other tensors, so they are never cut
                numbers = tensor.is_floating_point() or tensor.dtype is torch.bool
                _label(tensor, tuple(self.labels.fresh(size) if numbers else None for size in tensor.shape))
            self.tensors[name] = self.lines(tensor)

    def lines(self, tensor: Tensor) -> Lines:
        """Return a tensor's lines; one that no operation of the trace made is a constant of fixed size."""
        return getattr(tensor, "_hfp_lines", (None,) * tensor.dim())

    def where(self) -> str:
        return (self.path[-1] if self.path else "") or "the model"

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        key = self.key(function)
        for tensor in tensors_in([args, kwargs]):
            self._fix_choice(tensor)
        result = self.compute(function, key, args, kwargs)
        decided = replay.decision(function, key[1], args, kwargs, result)
        if decided is not None:
            self.decisions[key] = decided
        outputs = tuple(tensors_in(result))
        if not outputs:
            return result
        notes = Notes([])
        op = Operation(key[1], args, kwargs or {}, outputs, self.where(), self.labels, self.lines, notes)
        inputs = tuple(self.lines(tensor) for tensor in op.tensors)
        found = _rule_of(op, function)(op)
        each = found if isinstance(found, list) else [found]
        for output, lines in zip(outputs, each, strict=True):
            _label(output, lines)
        if notes.choice is not None:
            outputs[-1]._hfp_choice = notes.choice  # type: ignore[attr-defined]
        self._note(key, inputs, tuple(each), outputs, notes)
        formula = formula_of(function)
        if formula is not None and not self._model.training:
            self.counted.append(counted_call(formula, args, kwargs or {}, result, self.lines))
        return result

    def _fix_choice(self, tensor: Tensor) -> None:
        """Fix the dimension whose chosen indices are read as numbers.

        Another choice would be another number.
        """
        line = getattr(tensor, "_hfp_choice", None)
        if line is not None:
            self.labels.fix(line, f"{self.where()}: the number of a chosen index of this dimension is read")

    def _note(
        self,
        key: CallKey,
        inputs: tuple[Lines, ...],
        lines: tuple[Lines, ...],
        outputs: tuple[Tensor, ...],
        notes: Notes,
    ) -> None:
        shapes = tuple(tuple(output.shape) for output in outputs)
        stated = tuple((size, line) for size, line in notes.stated if line is not None and size > 1)
        self.calls[key] = TracedCall(key, inputs, lines, shapes, stated, notes.reduces)
        if notes.channels is not None:
            self.channels[key[0]] = notes.channels
        if notes.groups is not None:
            self.groups[key[0]] = notes.groups
        if not notes.followed:
            self.unknown.add(key[1])


def _rule_of(op: Operation, function: Any) -> OperationRule:
    """Return the rule by which a call passes labels on."""
    if any(len(op.lines(tensor)) != tensor.dim() for tensor in op.tensors):
        return opaque  # it was reshaped in place, so that its old shape is unknown
    if not any(tensor.dim() for tensor in (*op.tensors, *op.outputs)):
        return pointwise  # single numbers have no dimension that a rule could speak of
    return OPERATION_RULES.get(op.name, pointwise if _is_pointwise(function, op.name) else opaque)


def _is_pointwise(function: Any, name: str) -> bool:
    """Return whether PyTorch says that an operation is pointwise; it says so of few that write in place."""
    plain = getattr(getattr(torch.ops.aten, name, None), function._overloadname, function)
    return torch.Tag.pointwise in (*function.tags, *plain.tags)


class _ScaledAttention(TorchFunctionMode):
    """Notes the heads of attention, and fixes the size that it is scaled by.

    Attention divides by the root of the head's size unless it is given a scale.
    """

    def __init__(self, follower: _Follower) -> None:
        super().__init__()
        self._follower = follower

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is _ATTENTION:
            return self._attention(*args, **(kwargs or {}))
        if function is F.multi_head_attention_forward:
            # inside an intercepted function nothing else is intercepted, so its call of the other is replaced
            with mock.patch.object(F, "scaled_dot_product_attention", self._attention):
                return function(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _attention(self, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        for line in self._follower.lines(query)[:-2]:  # heads may be one dimension with the samples, which have no line
            self._follower.labels.attend(line)
        if kwargs.get("scale") is None:
            reason = f"{self._follower.where()}: attention is scaled by the size of this dimension"
            self._follower.labels.fix(self._follower.lines(query)[-1], reason)
        return _ATTENTION(query, *args, **kwargs)


def _label(tensor: Tensor, lines: Lines) -> None:
    expected = tuple(tensor.shape)
    found = tuple(size if line is None else len(line) for size, line in zip(expected, lines, strict=True))
    assert found == expected, f"a rule gave lines of sizes {found} to a tensor of shape {expected}"
    tensor._hfp_lines = lines  # type: ignore[attr-defined]
