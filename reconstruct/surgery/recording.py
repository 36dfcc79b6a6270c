"""Record what torch-pruning surgery removes, whoever drives it, with `record(model)`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_pruning.dependency.dependency import Dependency

from hfp.reconstruct.errors import MapError
from hfp.reconstruct.maps.factor import factor, flat_indices
from hfp.reconstruct.maps.index_map import IndexMap, TensorMap
from hfp.reconstruct.maps.tables import html_table
from hfp.reconstruct.models.attributes import changes, snapshot
from hfp.reconstruct.models.running import run_error
from hfp.reconstruct.models.twin import Twin, check_tied, joined, tensors_of, tied
from hfp.reconstruct.surgery.layer_norm import in_order
from hfp.reconstruct.surgery.site import Site

_LOCK = threading.Lock()
_ACTIVE: list[Recording] = []
_CALL = Dependency.__call__


class Recording:
    """What surgery on one model has removed so far; `record` makes it.

    >>> import torch
    >>> from hfp.reconstruct import record
    >>> with record(torch.nn.Linear(4, 2)) as recording:
    ...     recording
    <Recording of a Linear: open, 0 of 2 tensors cut so far>
    >>> recording
    <Recording of a Linear: finished, 0 of 2 tensors cut>
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._names: dict[nn.Module, list[str]] = {}
        for name, module in self._modules.items():
            self._names.setdefault(module, []).append(name)
        self._attributes = snapshot(model)
        self._maps = {name: TensorMap.identity(tuple(tensor.shape)) for name, tensor in tensors_of(model)}
        self._keys = list(IndexMap.identity(model).tensors)
        unknown = [key for key in self._keys if key not in self._maps]
        if unknown:
            raise MapError(f"the model's state_dict has entries that are neither parameters nor buffers: {unknown[:4]}")
        self._tied = tied(model)
        self._index_map: IndexMap | None = None

    @property
    def index_map(self) -> IndexMap:
        """Return the map from the model at the start of the block to the model at the end.

        Raises:
            MapError: the block has not ended, or it ended with an error.
        """
        if self._index_map is None:
            raise MapError("the recording has no index map before its `with` block has ended without an error")
        return self._index_map

    def __repr__(self) -> str:
        """Return one line that names the model and says how much was cut."""
        cut = sum(not tensor.is_identity for tensor in self._maps.values())
        state, far = ("open", " so far") if self._index_map is None else ("finished", "")
        return f"<Recording of a {type(self._model).__name__}: {state}, {cut} of {len(self._maps)} tensors cut{far}>"

    def _repr_html_(self) -> str:
        cut = [
            (name, list(tensor.shape), list(tensor.compact_shape))
            for name, tensor in self._maps.items()
            if not tensor.is_identity
        ]
        return html_table(repr(self)[1:-1], ("tensor", "shape before", "shape now"), cut)

    def finish(self, example_inputs: Any = None) -> None:
        """Check the recording against the model and make the index map.

        Raises:
            MapError: the model is not what the recorded surgery makes of it.
        """
        if dict(self._model.named_modules(remove_duplicate=False)) != self._modules:
            raise MapError("modules were added, removed or replaced during the recording; prune channels only")
        tensors = dict(tensors_of(self._model))
        missing = [name for name in self._maps if name not in tensors]
        if missing:
            raise MapError(f"{missing[0]} disappeared during the recording; prune channels only")
        self._check_shapes({name: tensors[name] for name in self._maps})
        check_tied(self._tied, self._maps)
        attributes = changes(self._attributes, self._model)
        error = None if example_inputs is None else run_error(self._model, example_inputs)
        if error is not None:
            raise MapError(
                f"the pruned model does not run on the example inputs ({error}); correct what torch-pruning leaves to "
                "you, such as an attention's num_heads, inside the block"
            )
        transient = {
            name: found for name, found in self._maps.items() if name not in self._keys and not found.is_identity
        }
        self._index_map = IndexMap({key: self._maps[key] for key in self._keys}, attributes, transient)

    def watch(self, dependency: Dependency, idxs: Sequence[int]) -> Callable[[], None] | None:
        """Prepare to repeat one surgery on index tensors; None when it is not on this model.

        Raises:
            MapError: torch-pruning would misunderstand the indices, or unrecorded surgery came before. The layer is
                untouched then.
        """
        target = dependency.target.module
        if isinstance(target, nn.Parameter):
            names = [name for name, tensor in self._model.named_parameters(remove_duplicate=False) if tensor is target]
            tensors: Iterable[tuple[str, Tensor]] = [("", target)]
        else:
            names = self._names.get(target, [])
            tensors = tensors_of(target)
        if not names:
            return None
        _check_indices(Site(dependency.target, dependency.handler), idxs, names[0])
        self._check_shapes({joined(names[0], local): tensor for local, tensor in tensors})
        if isinstance(target, nn.Parameter):
            return lambda: self._repeat_on_parameter(dependency, idxs, names)
        twin = Twin(target)
        return lambda: self._repeat_on_module(dependency, idxs, names, twin)

    def _repeat_on_parameter(self, dependency: Dependency, idxs: Sequence[int], names: list[str]) -> None:
        shape = self._maps[names[0]].compact_shape
        shadow = nn.Parameter(flat_indices(torch.empty(shape, device="meta")))
        self._cut(names, factor(dependency.handler(shadow, list(idxs)), shape, names[0]))

    def _repeat_on_module(self, dependency: Dependency, idxs: Sequence[int], names: list[str], twin: Twin) -> None:
        dependency.handler(twin.module, list(idxs))
        for local, cut in twin.kept(names[0]).items():
            self._cut([joined(prefix, local) for prefix in names], cut)

    def _cut(self, names: list[str], cut: TensorMap) -> None:
        for name in names:
            self._maps[name] = self._maps[name].then(cut)

    def _check_shapes(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            expected = list(self._maps[name].compact_shape) if name in self._maps else None
            if expected is not None and list(tensor.shape) != expected:
                raise MapError(
                    f"{name}: the recorded surgery leaves shape {expected}, the model has {list(tensor.shape)}; prune "
                    "through torch-pruning's groups (pruner.step(), group.prune()) only"
                )


@contextmanager
def record(model: nn.Module, example_inputs: Any = None) -> Iterator[Recording]:
    """Record every torch-pruning surgery on `model` inside a `with` block, in any number of steps.

    Every cut that goes through a torch-pruning group is repeated on tensors that hold their own indices. This covers
    `pruner.step()`, interactive steps, `group.prune()`, custom pruners and unwrapped parameters. What is left of the
    index tensors is the map. Plain attributes that change in the block are part of it, whether surgery changes them or
    a hand, as with `attention.num_heads`. Weights may be on any device, the meta device too. The model may be trained
    between steps.

    Inside the block, layer norms are cut in order. torch-pruning 1.6.1 fails to do this where few channels of many are
    kept, such as 300 of 768.

    Args:
        model: the model whose modules are pruned.
        example_inputs: inputs on which the pruned model is run when the block ends, in evaluation mode without
            gradients. Attributes that were left stale are then found here, and not when a saved model is used. A tuple
            or list is unpacked, a dict is passed as keywords. None, the default, runs nothing.

    Returns:
        A context manager that gives a `Recording`; its `index_map` exists once the block has ended.

    Raises:
        MapError: what happens cannot be mapped; the message says where. Indices that torch-pruning would misunderstand
            are refused before a layer is cut, all else at the end of the block.

    >>> import torch
    >>> import torch_pruning as tp
    >>> from hfp.reconstruct import record
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> graph = tp.DependencyGraph().build_dependency(model, torch.randn(2, 4))
    >>> with record(model, torch.randn(2, 4)) as recording:
    ...     graph.get_pruning_group(model[0], tp.prune_linear_out_channels, [1, 3, 4]).prune()
    >>> recording.index_map.tensors["0.weight"]
    TensorMap([6, 4] -> [3, 4], dim 0: 0 2 5)
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
    dependency = _in_order(dependency)
    repeats = [recording.watch(dependency, plain) for recording in list(_ACTIVE)]
    result = _CALL(dependency, idxs)
    for repeat in repeats:
        if repeat is not None:
            repeat()
    return result


def _in_order(dependency: Dependency) -> Dependency:
    handler = in_order(dependency.handler)
    if handler is dependency.handler:
        return dependency
    return Dependency(dependency.trigger, handler, dependency.source, dependency.target)


def _check_indices(site: Site, idxs: Sequence[Any], where: str) -> None:
    """Refuse indices that torch-pruning accepts and then counts wrongly.

    Raises:
        MapError: the indices are not distinct integers in range.
    """
    try:
        size = site.channels
    except (AttributeError, IndexError):  # custom functions may have no size, and layer norms fewer dimensions
        size = None
    strange = [i for i in idxs if not isinstance(i, int | np.integer) or i < 0 or (size is not None and i >= size)]
    if strange or len(set(idxs)) != len(idxs):
        raise MapError(
            f"{where}: expected distinct integers in [0, {size if size is not None else 'channels'}) to remove, got "
            f"{f'{strange[0]!r}' if strange else 'repeated ones'}; torch-pruning would cut the weights and count the "
            "channels differently (turn tensors into lists)"
        )
