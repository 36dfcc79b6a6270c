"""Record what torch-pruning surgery removes, whoever drives it: `record(model)`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch_pruning.dependency.dependency import Dependency

from hfp.reconstruct._factor import factor, flat_indices
from hfp.reconstruct._running import run_error
from hfp.reconstruct._twin import Twin, check_tied, tensors_of, tied
from hfp.reconstruct.attributes import changes, snapshot
from hfp.reconstruct.errors import MapError
from hfp.reconstruct.index_map import IndexMap, TensorMap

_LOCK = threading.Lock()
_ACTIVE: list[Recording] = []
_CALL = Dependency.__call__


class Recording:
    """What surgery on one model removed so far; made by `record`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._names: dict[nn.Module, list[str]] = {}
        for name, module in self._modules.items():
            self._names.setdefault(module, []).append(name)
        self._attributes = snapshot(model)
        self._keys = list(model.state_dict(keep_vars=True))
        self._maps = {name: TensorMap.identity(tuple(tensor.shape)) for name, tensor in tensors_of(model)}
        self._tied = tied(model)
        self._index_map: IndexMap | None = None

    @property
    def index_map(self) -> IndexMap:
        """The map from the model as it was at the start of the block to the model as it was at the end.

        Raises:
            MapError: the block has not ended, or ended with an error.
        """
        if self._index_map is None:
            raise MapError("the recording has no index map before its `with` block has ended without an error")
        return self._index_map

    def finish(self, example_inputs: Any = None) -> None:
        """Check the recording against the model and make the index map.

        Raises:
            MapError: the model is not what the recorded surgery makes of it.
        """
        if dict(self._model.named_modules(remove_duplicate=False)) != self._modules:
            raise MapError("modules were added, removed or replaced during the recording; prune channels only")
        self._check_shapes()
        check_tied(self._tied, self._maps)
        transient = {
            name: found for name, found in self._maps.items() if name not in self._keys and not found.is_identity
        }
        attributes = changes(self._attributes, self._model)
        error = None if example_inputs is None else run_error(self._model, example_inputs)
        if error is not None:
            raise MapError(
                f"the pruned model does not run on the example inputs ({error}); correct what torch-pruning leaves to "
                "you, such as an attention's num_heads, inside the block"
            )
        self._index_map = IndexMap({key: self._maps[key] for key in self._keys}, attributes, transient)

    def watch(self, dependency: Dependency, idxs: Sequence[int]) -> Callable[[], None] | None:
        """Prepare to repeat one surgery on index tensors; None when it is not on this model."""
        target = dependency.target.module
        if isinstance(target, nn.Parameter):
            names = [name for name, tensor in self._model.named_parameters(remove_duplicate=False) if tensor is target]
            return (lambda: self._repeat_on_parameter(dependency, idxs, names)) if names else None
        if target not in self._names:
            return None
        names = self._names[target]
        twin = Twin(target)
        return lambda: self._repeat_on_module(dependency, idxs, names, twin)

    def _repeat_on_parameter(self, dependency: Dependency, idxs: Sequence[int], names: list[str]) -> None:
        shape = self._maps[names[0]].compact_shape
        shadow = nn.Parameter(flat_indices(torch.empty(shape, device="meta")))
        kept = factor(dependency.handler(shadow, list(idxs)), shape, names[0])
        for name in names:
            self._maps[name] = self._maps[name].then(TensorMap(shape, kept))

    def _repeat_on_module(self, dependency: Dependency, idxs: Sequence[int], names: list[str], twin: Twin) -> None:
        dependency.handler(twin.module, list(idxs))
        for local, kept in twin.kept(names[0]).items():
            for prefix in names:
                name = f"{prefix}.{local}" if prefix else local
                before = self._maps[name]
                self._maps[name] = before.then(TensorMap(before.compact_shape, kept))

    def _check_shapes(self) -> None:
        found = {name: tuple(tensor.shape) for name, tensor in tensors_of(self._model)}
        for name, tensor in self._maps.items():
            if name not in found:
                raise MapError(f"{name} disappeared during the recording; prune channels only")
            if found[name] != tensor.compact_shape:
                raise MapError(
                    f"{name}: the recorded surgery gives shape {list(tensor.compact_shape)}, the model has "
                    f"{list(found[name])}; prune through torch-pruning's groups (group.prune(), pruner.step()) only"
                )


@contextmanager
def record(model: nn.Module, example_inputs: Any = None) -> Iterator[Recording]:
    """Record every torch-pruning surgery on `model` inside a `with` block, in any number of steps.

    Every cut that goes through a torch-pruning group (`pruner.step()`, interactive steps, `group.prune()`, custom
    pruners, unwrapped parameters) is repeated on tensors that hold their own indices; what is left of these is the
    map. Plain attributes that change in the block (by surgery, or by hand such as `attention.num_heads`) are part of
    it. Weights may be on any device, the meta device too; training between steps is fine.

    Args:
        model: the model whose modules are pruned.
        example_inputs: if given, the pruned model is run on them (evaluation mode, no gradients) when the block
            ends, so that attributes left stale are found here and not when a saved model is used. A tuple or list is
            unpacked, a dict passed as keywords.

    Raises:
        MapError: at the end of the block, when what happened can't be mapped (the message says where).
    """
    recording = Recording(model)
    _start(recording)
    try:
        yield recording
    finally:
        _stop(recording)
    recording.finish(example_inputs)


def _start(recording: Recording) -> None:
    with _LOCK:
        _ACTIVE.append(recording)
        Dependency.__call__ = _recorded_call


def _stop(recording: Recording) -> None:
    with _LOCK:
        _ACTIVE.remove(recording)
        if not _ACTIVE:
            Dependency.__call__ = _CALL


def _recorded_call(dependency: Dependency, idxs: Sequence[Any]) -> Any:
    plain = [getattr(index, "idx", index) for index in idxs]
    repeats = [recording.watch(dependency, plain) for recording in list(_ACTIVE)]
    result = _CALL(dependency, idxs)
    for repeat in repeats:
        if repeat is not None:
            repeat()
    return result
