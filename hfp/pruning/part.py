"""A part of a model as what is pruned: what runs inside one module, called as the whole model calls it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hfp.costs.macs import macs, parameters, state_bytes
from hfp.errors import InputError, described, listed, unknown
from hfp.layers.calling import call, modes_kept, random_state_kept, results
from hfp.pruning.own_copy import ParameterWritten, Unwritten, own_copy
from hfp.reconstruct import Coupling, IndexMap, MapError, compact_model
from hfp.reconstruct.coupling.rules.registry import tensors_in
from hfp.reconstruct.models.copying import copied
from hfp.reconstruct.models.twin import computed, tensors_of

_SIZES = {"params": parameters, "bytes": state_bytes}
_SHARED = "what runs outside of the part uses it too"


@dataclass(frozen=True)
class Part:
    """What of a model is pruned, and how that is called.

    Args:
        name: the module's name in the model; None for the whole model.
        inputs: what `view` of the model is called with.
        shared: tensors of the part that the rest of the model uses too, with the reason to keep them whole.
        outside: what the rest of the model costs, by the cost's name.
    """

    name: str | None
    inputs: Any
    shared: Mapping[str, str] = field(default_factory=dict)
    outside: Mapping[str, int] = field(default_factory=dict)

    def view(self, model: nn.Module) -> nn.Module:
        """The model, with the same modules and names, that runs nothing but the part when it is called."""
        if self.name is None:
            return model
        found = type(model).__new__(type(model))
        hooks = {name: OrderedDict[int, Any]() for name in vars(model) if name.endswith("_hooks")}
        vars(found).update({**vars(model), **hooks, "forward": MethodType(_Forward(self.name), found)})
        return found

    def costs(self, model: nn.Module) -> dict[str, float]:
        """What the part costs, but for its latency."""
        whole = {"macs": macs(self.view(model), self.inputs), "params": parameters(model), "bytes": state_bytes(model)}
        return self.inside(whole)

    def inside(self, costs: Mapping[str, float]) -> dict[str, float]:
        """The costs of the whole model without those of what is outside of the part."""
        return {name: cost - self.outside.get(name, 0) for name, cost in costs.items()}

    def why_nothing(self, coupling: Coupling) -> str:
        """Some reasons for which none of its layers can lose outputs."""
        if self.name is None:
            return coupling.why_nothing
        reasons = [reason for name, reason in coupling.left_alone.items() if self.holds(name)]
        return "; ".join(dict.fromkeys(reasons[-3:])) or "it has no channels"

    def holds(self, name: str) -> bool:
        """Whether a module or tensor of this name is in the part."""
        return self.name is None or f"{name}.".startswith(f"{self.name}.")


@dataclass(frozen=True)
class _Forward:
    """The forward pass of a module inside the model that it is bound to, as `MethodType` binds a function."""

    name: str

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        own_args, own_kwargs = copy.deepcopy((args, kwargs))  # the part may write into what it is given
        return model.get_submodule(self.name)(*own_args, **own_kwargs)


def part_of(model: nn.Module, example_inputs: Any, part: str | None) -> Part:
    """Run a model once, and catch what one of its modules is called with.

    Args:
        model: a copy of the caller's model that may run.
        example_inputs: what the model is called with.
        part: the module's name; None for the whole model.

    Raises:
        InputError: no module has this name, or it doesn't run exactly once.
    """
    if part is None:
        return Part(None, example_inputs)
    modules = dict(model.named_modules(remove_duplicate=False))
    if part not in modules or part == "":
        raise unknown("part", part, [name for name in modules if name])
    part = next(name for name, module in model.named_modules() if module is modules[part])  # it may have several names
    watch = _Watch(modules[part])
    with watch.hooked(), watch, modes_kept(model), torch.no_grad(), random_state_kept(seed=0):
        call(model.eval(), example_inputs)
    if len(watch.calls) != 1:
        raise InputError(_how_often(part, len(watch.calls), modules))
    args, kwargs = watch.calls[0]
    shared = {name: _SHARED for name, tensor in tensors_of(model) if id(tensor) in watch.used_outside}
    outside = {name: count(model) - count(modules[part]) for name, count in _SIZES.items()}
    return Part(part, {"args": args, "kwargs": kwargs}, shared, outside)


def started(
    model: nn.Module, example_inputs: Any, part: str | None
) -> tuple[nn.Module, tuple[str, ...], Part, dict[str, float]]:
    """Make a copy, and find what of it is pruned and what that costs: (copy, layers without hooks, part, costs).

    Args:
        model: the caller's model, which never runs itself.
        example_inputs: what the model is called with.
        part: the name of a module; None for the whole model.

    Raises:
        InputError: the model does not run on the inputs, or it has no such part.
    """
    own, hooked = own_copy(model)
    try:
        with Unwritten(own):
            return own, hooked, *_part_and_costs(own, hooked, example_inputs, part)
    except ParameterWritten:
        own, hooked = own_copy(model, share=False)
        return own, hooked, *_part_and_costs(own, hooked, example_inputs, part)


def _part_and_costs(
    own: nn.Module, hooked: tuple[str, ...], example_inputs: Any, part: str | None
) -> tuple[Part, dict[str, float]]:
    try:
        found = part_of(own, example_inputs, part)
        return found, found.costs(own)
    except (InputError, ParameterWritten):
        raise
    except Exception as error:
        missing = (
            f"; hooks of {listed(hooked, most=4)} are plain functions, which are not called here" if hooked else ""
        )
        raise InputError(f"the model does not run on the example inputs ({described(error)}){missing}") from error


class _Watch(TorchDispatchMode):
    """Notes what a module is called with, and which of its tensors are used while it is not running."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any]] = []
        self.used_outside: set[int] = set()
        self._module, self._running = module, 0
        self._own = {id(tensor) for _, tensor in tensors_of(module)}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """The module tells when it starts, and with what, and when it ends."""
        before = self._module.register_forward_pre_hook(self._start, prepend=True, with_kwargs=True)
        after = self._module.register_forward_hook(self._end, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _start(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.calls.append(copy.deepcopy((args, kwargs)))  # the pass may write into them
        self._running += 1

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running -= 1

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._running:
            self.used_outside.update({id(tensor) for tensor in tensors_in([args, kwargs])} & self._own)
        return function(*args, **(kwargs or {}))


def check_whole(part: Part, full: nn.Module, index_map: IndexMap, example_inputs: Any) -> None:
    """Make sure that the rest of the model uses nothing of a pruned part but what the part returns.

    The model with the pruned part inside must give what the model with the full part gives, if that part returns what
    the pruned one does.

    Raises:
        MapError: it gives something else, or does not run.
    """
    if part.name is None:
        return
    compact = compact_model(full, index_map)
    lending = copied(full, {**computed(full), **{id(tensor): tensor for _, tensor in tensors_of(full)}})
    lending.get_submodule(part.name).forward = copied(compact.get_submodule(part.name), {}).eval().forward
    try:
        found, expected = _outputs(compact, example_inputs), _outputs(lending, example_inputs)
        same = len(found) == len(expected) and all(
            torch.allclose(one, other, equal_nan=True) for one, other in zip(found, expected, strict=True)
        )
        reason = "its outputs change"
    except Exception as error:
        same, reason = False, described(error)
    if not same:
        raise MapError(
            f"what runs outside of {part.name} uses more of it than its outputs, so that it can't be pruned alone "
            f"({reason}); prune a larger part, or the whole model"
        )


def _outputs(model: nn.Module, example_inputs: Any) -> list[Tensor]:
    with modes_kept(model), torch.no_grad(), random_state_kept(seed=0):
        return results(call(model.eval(), example_inputs))


def _how_often(part: str, count: int, modules: Mapping[str, nn.Module]) -> str:
    if count:
        return (
            f"part {part} runs {count} times in one pass, and a part runs once; prune the whole model, or a larger part"
        )
    inside = [name for name in modules if name.startswith(f"{part}.")][:3]
    hint = f"; what is inside may, such as {', '.join(inside)}" if inside else ""
    return f"part {part} does not run when the model is called with the example inputs{hint}"
