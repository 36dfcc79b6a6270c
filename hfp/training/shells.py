"""Compact models that are used again: one is made per shape and filled with one client's values after another.

`hfp.reconstruct.compact_model` is the plain reference: a filled shell computes what a newly made model does.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hfp.reconstruct import IndexMap, compact_model
from hfp.training.local_step import LocalData, LocalResult, LocalStep, LocalTraining, Objective, train
from hfp.training.static_step import StaticStep

_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))

State = Mapping[str, Tensor]


class Shell:
    """A compact model on `device`, whose tensors stay where they are while their values change.

    Its `steps` keep what stays valid as long as the tensors stay in place, such as captured training steps.
    """

    def __init__(
        self, parent: nn.Module, index_map: IndexMap, state: State, device: torch.device, channels_last: bool
    ) -> None:
        self.model = compact_model(parent, index_map, state).to(device)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.steps: dict[Hashable, Any] = {}
        self._tensors = self.model.state_dict(keep_vars=True)
        # a model is filled once for every client and round, so that it is walked through here and not there
        self._modules = list(self.model.modules())
        self._parameters = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        self._transient = [name for name, _ in self.model.named_buffers() if name not in self._tensors]
        self._hooks = [(hooks, dict(hooks)) for hooks in _hooks_of(self.model)]

    def fill(self, parent: nn.Module, index_map: IndexMap, state: State) -> nn.Module:
        """Give the model the values, modes, hooks and frozen parameters of `compact_model(parent, index_map, state)`.

        Raises:
            MapError: `state` is not the compact state of the map.
        """
        index_map.check_compact(state)
        with torch.no_grad():
            torch._foreach_copy_(
                [tensor.detach() for tensor in self._tensors.values()], [state[name] for name in self._tensors]
            )
            for name in self._transient:
                full, place = parent.get_buffer(name), index_map.transient.get(name)
                self.model.get_buffer(name).copy_(full if place is None else place.restrict(full))
        for module, own in zip(self._modules, parent.modules(), strict=True):
            if module.training != own.training:
                module.training = own.training
        for hooks, first in self._hooks:
            if hooks or first:
                hooks.clear()
                hooks.update(first)
        for parameter, trained in self._parameters:
            parameter.grad = None
            parameter.requires_grad_(trained)
        return self.model

    @property
    def has_new_hooks(self) -> bool:
        """Whether the model has been given hooks since it was filled."""
        return any(hooks.keys() != first.keys() for hooks, first in self._hooks)


class Replay:
    """Keeps the steps of shells, and warns once per reason why one can't be replayed.

    The steps share one graph memory, so they must never run at the same time.
    """

    def __init__(self, device: torch.device, said: set[str] | None = None) -> None:
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._said = set() if said is None else said

    def step(
        self,
        shell: Shell,
        data: LocalData,
        training: LocalTraining,
        objective: Objective,
        schedule: Sequence[Tensor],
    ) -> StaticStep | None:
        """Return the step of a shell's model, or None where it can't be replayed or there is no batch."""
        reason = _why_not(shell, training, objective)
        if reason:
            self._say(reason)
        if reason or not schedule:
            return None
        sizes = [len(chosen) for chosen in schedule]
        size = max(dict.fromkeys(sizes), key=sizes.count)
        tensors = {name: (tensor.shape, tensor.dtype) for name, tensor in objective.tensors.items()}
        key = (
            *(size, data.images.shape[1:], data.images.dtype, data.normalise),
            *(_without_rate(training), type(objective), objective.constants()),
            tuple(tensors.items()),
            tuple(parameter.requires_grad for parameter in shell.model.parameters()),
        )
        step = shell.steps.get(key)
        if step is None or step.moved:
            step = StaticStep(shell.model, data.normalise, training, objective, size, self._pool)
            shell.steps[key] = step
        return step

    def _say(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            warnings.warn(f"local steps are not replayed as CUDA graphs but run one by one: {reason}", stacklevel=2)


def _without_rate(training: LocalTraining) -> LocalTraining:
    """The same for all rounds whose steps differ in nothing but the rate, which a step is given."""
    return dataclasses.replace(training, epochs=1, rate_factor=None if training.rate_factor is None else 1.0)


def _why_not(shell: Shell, training: LocalTraining, objective: Objective) -> str:
    """Say why a step can't be replayed; the reason is empty when it can."""
    if training.measure_variance:
        return "the variance of their gradients is measured"
    if objective.constants() is None:
        return f"{type(objective).__name__} does not say that it does the same in every step"
    if shell.has_new_hooks and type(objective) is Objective:
        return "the method gave the model hooks"
    return ""


class Shells:
    """The shells of one full model. Those that nobody uses wait for the next client of their shape.

    A model that shares a tensor between names has no shells: its compact models are made anew, so that what is given
    for these names is compared.

    Args:
        parent: the full model.
        device: where the compact models are.
        channels_last: lay out filters with their channels last.
        most: how many shells wait; those that have waited longest are dropped first.
        replay: keeps and replays their steps; by default steps run one by one.
        wait: is called before a value is read from the device.
    """

    def __init__(
        self,
        parent: nn.Module,
        device: torch.device,
        *,
        channels_last: bool = False,
        most: int = 8,
        replay: Replay | None = None,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        self._parent, self._device, self._channels_last, self._most = parent, device, channels_last, most
        self.replay, self.wait = replay, wait
        self._waiting: OrderedDict[int, tuple[Hashable, Shell]] = OrderedDict()
        names = [id(tensor) for tensor in parent.state_dict(keep_vars=True).values()]
        self._reused = len(names) == len(set(names))

    @contextmanager
    def lent(self) -> Iterator[Lease]:
        """Lend shells while inside; all of them come back at the end."""
        taken: list[tuple[Hashable, Shell]] = []
        try:
            yield Lease(self, taken)
        finally:
            for key, shell in taken:
                if self._reused:
                    self._waiting[id(shell)] = key, shell
            while len(self._waiting) > self._most:
                self._waiting.popitem(last=False)

    def take(self, index_map: IndexMap, state: State) -> tuple[Hashable, Shell]:
        """Take a filled shell that nobody uses; it is made if there is none of its shape."""
        key = _shape_of(index_map)
        for place, (found, shell) in self._waiting.items():
            if found == key:
                del self._waiting[place]
                shell.fill(self._parent, index_map, state)
                return key, shell
        return key, Shell(self._parent, index_map, state, self._device, self._channels_last)


class Lease:
    """The shells that one client has while it works."""

    def __init__(self, shells: Shells, taken: list[tuple[Hashable, Shell]]) -> None:
        self._shells, self._taken = shells, taken

    def build(self, index_map: IndexMap, state: State) -> nn.Module:
        """Return the compact model of a map, filled with `state`; it is the client's until its work is done.

        Raises:
            MapError: the map is of another model, or `state` is not its compact state.
        """
        key, shell = self._shells.take(index_map, state)
        self._taken.append((key, shell))
        return shell.model

    def train(
        self,
        model: nn.Module,
        data: LocalData,
        training: LocalTraining,
        generator: torch.Generator,
        objective: Objective,
        schedule: Sequence[Tensor],
    ) -> LocalResult:
        """Train as `hfp.training.local_step.train` does, replaying the steps of models that were built here.

        Raises:
            InputError: training diverged.
        """
        shell, replay = self.shell(model), self._shells.replay
        step: LocalStep | None = None
        if replay and shell:
            step = replay.step(shell, data, training, objective, schedule)
        # a shell has the layout that `channels_last` asks for, and its tensors must stay where they are
        step = step or (LocalStep(model, data.normalise, training, objective) if shell else None)
        with step.of(objective, training) if isinstance(step, StaticStep) else nullcontext():
            return train(model, data, training, generator, objective, schedule, step, self._shells.wait)

    def shell(self, model: nn.Module) -> Shell | None:
        """Return the shell whose model this is; None for a model that was not built here."""
        return next((shell for _, shell in self._taken if shell.model is model), None)


def _shape_of(index_map: IndexMap) -> Hashable:
    """Return what two compact models must have in common for one to be filled with the other's values."""
    shapes = tuple(tensor.compact_shape for tensor in index_map.tensors.values())
    return shapes, repr({name: dict(changed) for name, changed in index_map.attributes.items()})


def _hooks_of(model: nn.Module) -> Iterator[dict[int, Any]]:
    for module in model.modules():
        for name in _HOOKS:
            if vars(module).get(name) is not None:
                yield vars(module)[name]
