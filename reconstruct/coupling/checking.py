"""Check with numbers that a compact model computes what its parent computes without the removed channels.

Parent and compact model get the same made-up weights; those of the removed channels are zero in the parent. Every
operation of the two is compared, not only the result, so that a wrong index cannot hide behind a layer that happens to
be zero. Both take statistics over channels (layer norms and the like) over the kept channels, which is what pruning a
normalised channel means. Random numbers and decisions are those of the parent (`replay`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hfp.layers.calling import call
from hfp.layers.flops import flops, formula_of
from hfp.reconstruct.coupling.replay import decision, replayed
from hfp.reconstruct.coupling.rules.labels import Lines
from hfp.reconstruct.coupling.rules.registry import tensors_in
from hfp.reconstruct.coupling.tracing import CallKey, TracedCall, running
from hfp.reconstruct.coupling.trials import COPIES, RunWithout
from hfp.reconstruct.coupling.wiring import Gone, Wiring
from hfp.reconstruct.errors import MapError
from hfp.reconstruct.maps.index_map import IndexMap, TensorMap
from hfp.reconstruct.models.compact import build
from hfp.reconstruct.models.copying import copied
from hfp.reconstruct.models.twin import computed, like, tensors_of

_TOLERANCE = 1e-4
_NOT_COMPARED = frozenset({*COPIES, "t"})  # linear layers transpose their whole weight, and then compute with it
_FEW = 1 << 19  # entries; weights of larger tensors are not kept
_PERIOD = 65537
"""After how many entries the noise repeats: a prime, so that no two channels of a usual width get the same."""
Digest = tuple[float, float]


@dataclass(frozen=True)
class Checked:
    """What running the masked parent and the compact model showed.

    Args:
        difference: the first operation whose kept results differ, and how they differ; None if none does.
        macs: the multiply-accumulates of the compact model's run, up to the difference.
    """

    difference: tuple[TracedCall, str] | None
    macs: int


def compare(wiring: Wiring, model: nn.Module, example_inputs: Any, gone: Gone, index_map: IndexMap) -> Checked:
    """Run the masked parent and the compact model, and compare the kept results of every operation.

    Args:
        wiring: what was traced from `model`.
        model: the full model, not on the meta device; it is not changed.
        example_inputs: what both are called with.
        gone: the classes that are removed.
        index_map: the map that should describe it.

    Raises:
        NotRunning: the compact model does not run.
    """
    parent = made_up(model)
    values = _kept(parent.named_buffers(remove_duplicate=False), index_map)  # a run may write to buffers
    expected = _MaskedRun(wiring, gone)
    expected.run(_masked(parent, index_map), example_inputs)
    values |= _kept(parent.named_parameters(remove_duplicate=False), index_map, last_use=True)
    compact = build(model, index_map, values).train().eval()
    found = _CompactRun(expected)
    try:
        found.run(compact, example_inputs)
    except _Different as difference:
        return Checked((difference.args[0], difference.args[1]), found.flops // 2)
    except Exception as error:
        raise NotRunning(f"the compact model does not run: {type(error).__name__}: {error}") from error
    return Checked(None, found.flops // 2)


def confirmed(wiring: Wiring, model: nn.Module, example_inputs: Any, gone: Gone, index_map: IndexMap) -> Checked:
    """Return what `compare` returns, after a second look with float64 where that finds a difference.

    A deep model may turn the rounding errors of float32 into large ones.

    Raises:
        NotRunning: the compact model does not run.
    """
    found = compare(wiring, model, example_inputs, gone, index_map)
    if found.difference is None:
        return found
    wide = copied(model, computed(model)).double()
    try:
        return compare(wiring, wide, _to_double(example_inputs), gone, index_map)
    except Exception:  # code of the model may ask for float32
        return found


def _to_double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _to_double(item) for name, item in value.items()}
    return type(value)(map(_to_double, value)) if type(value) in (list, tuple) else value


def masked_output(wiring: Wiring, model: nn.Module, example_inputs: Any, gone: Gone, index_map: IndexMap) -> Any:
    """Return what the full model computes without the removed channels.

    Their entries are zero, and statistics run over the others. The model draws and decides for itself, whatever the
    trace drew and decided.
    """
    own = _masked(copied(model, computed(model)).train().eval(), index_map)
    with masking(wiring, own, gone):
        return call(own, example_inputs)


@contextmanager
def masking(wiring: Wiring, model: nn.Module, gone: Gone) -> Iterator[None]:
    """Let statistics of a full model, whose removed entries are zero, run over the other channels inside.

    The model may run once.
    """
    run = _MaskedRun(wiring, gone)
    run.decisions.clear()
    with run.watching(model):
        yield


@torch.no_grad()
def _masked(own: nn.Module, index_map: IndexMap) -> nn.Module:
    """The given model with removed entries set to zero, in place."""
    known: dict[tuple[int, int], Tensor] = {}
    for name, tensor in tensors_of(own):
        kept = index_map.tensors.get(name) or index_map.transient.get(name)
        for dim, indices in enumerate(kept.kept if kept is not None else ()):
            if indices is not None:
                size = tensor.shape[dim]
                key = (id(indices), size)  # dimensions that keep the same share their indices
                if key not in known:
                    known[key] = torch.from_numpy(np.delete(np.arange(size), indices.numpy()))
                tensor.index_fill_(dim, known[key].to(tensor.device), 0)
    return own


def made_up(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose tensors differ from channel to channel, but keep their usual size."""
    noise = torch.rand(_PERIOD, generator=torch.Generator().manual_seed(0)).repeat(2)
    changed: dict[int, Tensor] = {}
    for number, (_, tensor) in enumerate(tensors_of(model)):
        if id(tensor) not in changed:
            disturbed = tensor.is_floating_point() and tensor.numel()
            own = _disturbed(tensor.detach(), noise[number % _PERIOD :]) if disturbed else tensor.detach().clone()
            changed[id(tensor)] = like(tensor, own).requires_grad_(tensor.requires_grad)
    return copied(model, {**computed(model), **changed}).train().eval()


def _disturbed(tensor: Tensor, noise: Tensor) -> Tensor:
    """Return a tensor whose every entry is changed by noise, which is repeated along it."""
    flat = tensor.reshape(-1)
    sample = flat[:: max(1, len(flat) // _PERIOD)].float()
    noise = noise[: min(_PERIOD, len(flat))]
    if sample.min().item() > 0:
        change, combine = (0.75 + 0.5 * noise).to(flat), torch.mul
    else:
        spread = sample.norm().item() / math.sqrt(len(sample))
        scale = spread if 0 < spread < math.inf else 0.2  # limits that a model clips by may be infinite
        change, combine = ((noise - 0.5) * scale).to(flat), torch.add
    if len(flat) <= _PERIOD:
        found = combine(flat, change)
    else:
        found = torch.empty_like(flat)
        for part, new in zip(flat.split(_PERIOD), found.split(_PERIOD), strict=True):
            combine(part, change[: len(part)], out=new)
    whole = found.view(tensor.shape)
    return whole if tensor.is_contiguous() else torch.empty_like(tensor).copy_(whole)


def _kept(tensors: Iterable[tuple[str, Tensor]], index_map: IndexMap, last_use: bool = False) -> dict[str, Tensor]:
    """Return what a map keeps of tensors, by name.

    With `last_use`, each tensor is freed after it was read, so that memory never holds all of both.
    """
    found = dict(tensors)
    uses = Counter(map(id, found.values()))
    kept: dict[str, Tensor] = {}
    for name, tensor in found.items():
        cut = index_map.tensors.get(name) or index_map.transient.get(name) or TensorMap.identity(tuple(tensor.shape))
        kept[name] = cut.restrict(tensor.detach())
        if last_use and uses[id(tensor)] == 1:
            tensor.untyped_storage().resize_(0)
    return kept


class NotRunning(MapError):
    """A compact model does not run."""


class _Different(Exception):
    pass


class _Run(RunWithout):
    def run(self, model: nn.Module, example_inputs: Any) -> Any:
        with self.watching(model):
            return call(model, example_inputs)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        with running(model) as path, torch.no_grad(), self:
            self.path = path
            yield


class _MaskedRun(_Run):
    """Runs the full model without its removed channels, and keeps a digest of every operation's kept results."""

    def __init__(self, wiring: Wiring, gone: Gone) -> None:
        super().__init__(wiring, gone)
        self.digests: dict[CallKey, list[Digest | None]] = {}
        self.decisions = dict(wiring.trace.decisions)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        key = self.key(function)
        known = self._wiring.trace.calls.get(key)
        if known is not None and known.reduces:
            result = self._reduced(function, known, args, kwargs or {})
        else:
            result = self.compute(function, key, args, kwargs)
        result = self._decided(result, function, key, args, kwargs)
        if known is None or key[1] in _NOT_COMPARED:
            return result
        if [tuple(output.shape) for output in tensors_in(result)] == list(known.shapes):
            outputs = zip(tensors_in(result), known.outputs, strict=True)
            self.digests[key] = [_digest(self.kept(output, lines)) for output, lines in outputs]
        return result

    def _decided(self, result: Any, function: Any, key: CallKey, args: Any, kwargs: Any) -> Any:
        """Return the result with what the trace decided.

        Where the trace decided nothing, what the call decides itself is noted.
        """
        if key in self.decisions:
            known = self._wiring.trace.calls.get(key)
            lines = () if known is None else tuple((None,) * len(each) for each in known.outputs)
            return replayed(result, self.decisions[key], lines, [args, kwargs], lambda tensor, _: tensor)
        decided = decision(function, key[1], args, kwargs, result)
        if decided is not None:
            self.decisions[key] = decided
        return result

    def _reduced(self, function: Any, known: TracedCall, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the operation on the kept entries only; removed entries of its results are zero."""
        lines = iter(known.inputs)
        small = [self.kept(arg, next(lines)) if isinstance(arg, Tensor) else arg for arg in args]
        for position, arg in enumerate(_own_sizes(known, small, self._wiring, self._gone)):
            small[position] = arg
        result = function(*small, **kwargs)
        outputs = tuple(tensors_in(result))
        full = [
            self._spread(output, each, shape)
            for output, each, shape in zip(outputs, known.outputs, known.shapes, strict=True)
        ]
        return full[0] if isinstance(result, Tensor) else type(result)(full)

    def _spread(self, tensor: Tensor, lines: Lines, shape: Sequence[int]) -> Tensor:
        for dim, (line, size) in enumerate(zip(lines, shape, strict=True)):
            if line is not None and tensor.shape[dim] == self._wiring.left(line, self._gone) < size:
                left = ~torch.from_numpy(self._gone[self._wiring.classes.of[line]])
                wide = tensor.new_zeros([size if each == dim else other for each, other in enumerate(tensor.shape)])
                tensor = wide.index_copy_(dim, left.nonzero().view(-1).to(tensor.device), tensor)
        return tensor


class _CompactRun(_Run):
    """Runs the compact model, compares every operation with the digest, and counts floating-point operations."""

    def __init__(self, parent: _MaskedRun) -> None:
        super().__init__(parent._wiring, parent._gone)
        self.flops = 0
        self._digests, self._decisions = parent.digests, parent.decisions

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        key = self.key(function)
        result = self.compute(function, key, args, kwargs)
        formula = formula_of(function)
        if formula is not None:
            self.flops += flops(formula, args, kwargs or {}, result)
        known = self._wiring.trace.calls.get(key)
        if key in self._decisions and (known is not None or not isinstance(self._decisions[key], list)):
            lines = () if known is None else known.outputs
            result = replayed(result, self._decisions[key], lines, [args, kwargs], self.kept)
        if key[1] in _NOT_COMPARED:
            return result
        for output, expected in zip(tensors_in(result), self._digests.get(key, []), strict=False):
            flat = _flat(output)
            if flat is None or expected is None:
                continue
            error, scale = abs(_projection(flat) - expected[0]), expected[1]
            if not error <= _TOLERANCE * (scale + 1e-6):
                found = f"its results differ by {error:.3g} (their norm is {scale:.3g})"
                if math.isnan(scale):
                    found = "the full model's are NaN there; give other example inputs, or other weights"
                raise _Different(self._wiring.trace.calls[key], found)
        return result


def _digest(tensor: Tensor) -> Digest | None:
    """Return a projection of a tensor that depends on the order of its entries, and the norm of the tensor."""
    flat = _flat(tensor)
    return None if flat is None else (_projection(flat), flat.norm().item())


def _flat(tensor: Tensor) -> Tensor | None:
    """Return a tensor's entries in float64, where infinite masks of attention are finite numbers."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return None
    return tensor.reshape(-1).to(torch.float64, copy=True).nan_to_num_(nan=math.nan, posinf=7.0, neginf=-7.0)


def _projection(flat: Tensor) -> float:
    few = flat.numel() <= _FEW
    weights = _first_weights(flat.device)[: flat.numel()] if few else _weights(flat.numel(), flat.device)
    return (weights @ flat).item()


@cache
def _first_weights(device: torch.device) -> Tensor:
    return _weights(_FEW, device)


def _weights(size: int, device: torch.device) -> Tensor:
    """Numbers that differ from place to place, `[size]`."""
    return torch.arange(size, dtype=torch.float64, device=device).mul_(0.7548776662466927).frac_().sub_(0.5)


def _own_sizes(known: TracedCall, args: list[Any], wiring: Wiring, gone: Gone) -> list[Any]:
    """Return the arguments, in which given sizes are replaced by those of the smaller tensors."""
    name, tensor = known.key[1], args[0]
    if name in ("native_layer_norm", "_fused_rms_norm"):
        return [tensor, list(tensor.shape[-len(args[1]) :])]
    if name == "native_group_norm":
        groups = wiring.left(next((line for size, line in known.stated if size == args[6]), None), gone, args[6])
        return [*args[:4], tensor.shape[1], tensor.shape[2:].numel(), groups]
    return []
