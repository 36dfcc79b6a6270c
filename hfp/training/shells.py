"""Compact models that are used again: one is made for a shape once, and then filled with one client's values after another.

`hfp.reconstruct.compact_model` is the plain reference: a filled shell computes what a newly made model does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hfp.reconstruct import IndexMap, compact_model

_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))

State = Mapping[str, Tensor]


class Shell:
    """A compact model on `device`, whose tensors stay where they are while their values change.

    `steps` is for what is worth keeping as long as the tensors stay, such as captured training steps.
    """

    def __init__(
        self, parent: nn.Module, index_map: IndexMap, state: State, device: torch.device, channels_last: bool
    ) -> None:
        self.model = compact_model(parent, index_map, state).to(device)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.steps: dict[Hashable, Any] = {}
        self._tensors = self.model.state_dict(keep_vars=True)
        self._hooks = [(hooks, dict(hooks)) for hooks in _hooks_of(self.model)]

    def fill(self, parent: nn.Module, index_map: IndexMap, state: State) -> nn.Module:
        """Make the model what `compact_model(parent, index_map, state)` is: values, modes and hooks.

        Raises:
            MapError: `state` is not the compact state of the map.
        """
        index_map.check_compact(state)
        buffers = dict(self.model.named_buffers())
        with torch.no_grad():
            torch._foreach_copy_(
                [tensor.detach() for tensor in self._tensors.values()], [state[name] for name in self._tensors]
            )
            for name, buffer in parent.named_buffers():
                if name not in self._tensors:
                    place = index_map.transient.get(name)
                    buffers[name].copy_(buffer if place is None else place.restrict(buffer))
        for module, own in zip(self.model.modules(), parent.modules(), strict=True):
            module.training = own.training
        for hooks, first in self._hooks:
            if hooks or first:
                hooks.clear()
                hooks.update(first)
        self.model.zero_grad(set_to_none=True)
        return self.model

    @property
    def has_new_hooks(self) -> bool:
        """Whether the model has been given hooks since it was filled."""
        return any(hooks.keys() != first.keys() for hooks, first in self._hooks)


class Shells:
    """The shells of one full model: those that nobody uses wait for the next client of their shape, at most `most`.

    Shells that have waited longest go first. A model that shares a tensor between names has none: its compact models
    are made anew, so that what is given for these names is compared.
    """

    def __init__(self, parent: nn.Module, device: torch.device, *, channels_last: bool = False, most: int = 8) -> None:
        self._parent, self._device, self._channels_last, self._most = parent, device, channels_last, most
        self._waiting: OrderedDict[int, tuple[Hashable, Shell]] = OrderedDict()
        names = [id(tensor) for tensor in parent.state_dict(keep_vars=True).values()]
        self._reused = len(names) == len(set(names))

    @contextmanager
    def lent(self) -> Iterator[Lease]:
        """Inside, shells can be taken; at the end all of them come back."""
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
        """A filled shell that nobody uses, made if there is none of its shape."""
        key = _shape_of(index_map)
        for place, (found, shell) in self._waiting.items():
            if found == key:
                del self._waiting[place]
                shell.fill(self._parent, index_map, state)
                return key, shell
        return key, Shell(self._parent, index_map, state, self._device, self._channels_last)


class Lease:
    """Shells for as long as one client works."""

    def __init__(self, shells: Shells, taken: list[tuple[Hashable, Shell]]) -> None:
        self._shells, self._taken = shells, taken

    def build(self, index_map: IndexMap, state: State) -> nn.Module:
        """The compact model of a map, filled with `state`; it is the client's until its work is done.

        Raises:
            MapError: the map is of another model, or `state` is not its compact state.
        """
        key, shell = self._shells.take(index_map, state)
        self._taken.append((key, shell))
        return shell.model

    def shell(self, model: nn.Module) -> Shell | None:
        """The shell whose model this is; None for a model that was not built here."""
        return next((shell for _, shell in self._taken if shell.model is model), None)


def _shape_of(index_map: IndexMap) -> Hashable:
    """What two compact models must have in common for one to be filled with the other's values."""
    shapes = tuple(tensor.compact_shape for tensor in index_map.tensors.values())
    return shapes, repr({name: dict(changed) for name, changed in index_map.attributes.items()})


def _hooks_of(model: nn.Module) -> Iterator[dict[int, Any]]:
    for module in model.modules():
        for name in _HOOKS:
            if vars(module).get(name) is not None:
                yield vars(module)[name]
