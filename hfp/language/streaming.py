"""Weights that are in memory only while they are used: a model runs, and is scored, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch_pruning.dependency.group import Group

from hfp.errors import InputError
from hfp.importance import CriterionError
from hfp.importance.groups.members import root_name
from hfp.language.outline import Outline, stacks

Change = Callable[[str, Tensor], Tensor]


class StreamedModel:
    """A model whose weights stay on the disk, and of which one block at a time is read when it runs.

    Args:
        outline: the model without weights; its buffers get their stored values.
        change: what is made of a tensor's values, by its name in the model; by default they are used as they are.
        device: where the model runs.
    """

    def __init__(self, outline: Outline, change: Change | None = None, device: torch.device | str = "cpu") -> None:
        self.model: Any = outline.model
        self._weights, self._change, self._device = outline.weights, change, torch.device(device)
        state = self.model.state_dict(keep_vars=True)
        self._stored = {id(state[name]): name for name in outline.weights.like}
        with torch.no_grad():
            for name, tensor in state.items():
                if not isinstance(tensor, nn.Parameter) and name in outline.weights.like:
                    tensor.copy_(self._read(name))
        for buffer in self.model.buffers():
            buffer.data = buffer.data.to(self._device)

    def beside(self, target: nn.Module | nn.Parameter) -> list[nn.Parameter]:
        """The parameters of a layer, or of the layer that holds a parameter."""
        if isinstance(target, nn.Parameter):
            own = (list(module.parameters(recurse=False)) for module in self.model.modules())
            return next(found for found in own if any(parameter is target for parameter in found))
        return list(target.parameters(recurse=False))

    @contextmanager
    def present(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Have some parameters in memory until the block ends."""
        taken: list[tuple[nn.Parameter, nn.Parameter]] = []
        try:
            with _disable_current_modes():  # who watches the model does not see its weights being read
                for parameter in parameters:
                    if parameter.is_meta:
                        value = nn.Parameter(self._value(parameter), requires_grad=False)
                        torch.utils.swap_tensors(parameter, value)
                        taken.append((parameter, value))
            yield
        finally:
            for parameter, value in reversed(taken):
                torch.utils.swap_tensors(parameter, value)

    def __call__(self, **inputs: Any) -> Any:
        """Run the model without gradients; inputs are moved to its device."""
        given = {name: _moved(value, self._device) for name, value in inputs.items()}
        with ExitStack() as hooks, torch.no_grad():
            for unit, inside in _units(self.model):
                parameters, held = tuple(unit.parameters(recurse=inside)), ExitStack()
                arriving = unit.register_forward_pre_hook(partial(self._arrive, parameters, held))
                leaving = unit.register_forward_hook(partial(_leave, held), always_call=True)
                hooks.callback(arriving.remove)
                hooks.callback(leaving.remove)
            return self.model(**given)

    def _read(self, name: str) -> Tensor:
        found = self._weights.read(name)
        return found if self._change is None else self._change(name, found)

    def _value(self, parameter: nn.Parameter) -> Tensor:
        found = self._read(self._stored[id(parameter)])
        return found.to(self._device, torch.float32 if found.is_floating_point() else found.dtype)

    def _arrive(self, parameters: tuple[nn.Parameter, ...], held: ExitStack, *_: Any) -> None:
        held.enter_context(self.present(parameters))


def _leave(held: ExitStack, *_: Any) -> None:
    held.close()


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _units(model: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """What is read at once: every block with all that is in it, and every other module with parameters of its own."""
    blocks = stacks(model)
    for name, module in model.named_modules():
        stack = next((each for each in blocks if name.startswith(f"{each}.")), None)
        if stack is None and next(module.parameters(recurse=False), None) is not None:
            yield module, False
        elif stack is not None and "." not in name.removeprefix(f"{stack}."):
            yield module, True


class StreamedCriterion:
    """A criterion that sees the weights of one layer of a group at a time.

    Args:
        criterion: a criterion that scores by weights alone.
        streamed: the model.
        tell: is called with how many groups are being scored or were.
    """

    def __init__(
        self, criterion: Callable[[Any], Tensor], streamed: StreamedModel, tell: Callable[[int], None]
    ) -> None:
        self._criterion, self._streamed, self._tell = criterion, streamed, tell
        self._scored = 0

    def __call__(self, group: Any) -> Tensor:
        """Return the scores of a group's channels, `[width]`.

        Raises:
            CriterionError: the criterion does not go through the layers one by one.
            InputError: there is not enough memory for one layer.
        """
        self._scored += 1
        self._tell(self._scored)
        try:
            scores = self._criterion(_StreamedGroup.of(group, self._streamed))
        except RuntimeError as error:
            if "allocate" not in str(error):
                raise
            raise InputError(
                f"there is not enough memory to score one layer of the group of {root_name(group)}, which takes about "
                "four times that layer in float32; leave its width out, or give more memory"
            ) from None
        if isinstance(scores, Tensor) and scores.is_meta:
            raise CriterionError("the criterion needs the weights of all layers at once; choose another one")
        return scores


class _StreamedGroup(Group):  # type: ignore[misc]
    """A coupled group that has the weights of a layer in memory while a loop over the group is at that layer."""

    _streamed: StreamedModel

    @classmethod
    def of(cls, group: Any, streamed: StreamedModel) -> _StreamedGroup:
        found = cls()
        found.__dict__.update(group.__dict__)
        found._streamed = streamed
        return found

    def __iter__(self) -> Iterator[Any]:
        for item in self._group:
            with self._streamed.present(self._streamed.beside(item.dep.target.module)):
                yield item


def check_streams(needs: str, name: str) -> None:
    """Refuse a criterion that scores by more than weights.

    Raises:
        InputError: it needs data or rounds of training.
    """
    if needs != "nothing":
        what = "data" if needs == "data" else "what a server knows from rounds of training"
        raise InputError(
            f"criterion {name!r} scores with {what}, for which the whole model is needed in memory; choose one that "
            "scores by weights (l1, l2), or load the model and call hfp.prune"
        )
