"""Find where a constant can be added to the outputs of a product without a new parameter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _BatchNorm

from hfp.importance.capture.batches import mapped
from hfp.pruning.repair.following import Place
from hfp.pruning.repair.products import Product, aten
from hfp.pruning.repair.weights import WeightPart, Weights, memory

_NORMS = (
    aten.native_batch_norm, aten.cudnn_batch_norm, aten.miopen_batch_norm, aten._batch_norm_no_update,
    aten._native_batch_norm_legit_no_training,
)  # fmt: skip
_SUMS = (aten.add, aten.add_)


@dataclass
class Constant:
    """A tensor that takes up a constant per output channel.

    Args:
        name: what reports call it.
        tensor: what is added to, `[channels]`.
        sign: of what is added. A batch-norm layer subtracts its running mean, so one that alone reads a layer takes the
            constant with sign -1.
    """

    name: str
    tensor: Tensor
    sign: float

    def __post_init__(self) -> None:
        self._start = self.tensor.detach().clone()

    def put(self, shift: Tensor | None) -> None:
        """Add `shift [channels]` to the layer's outputs as they were at first; None adds nothing."""
        start = self._start if shift is None else self._start.double() + self.sign * shift.double()
        with torch.no_grad():
            self.tensor.copy_(start)


@dataclass(frozen=True)
class _Layout:
    """How the entries of a tensor lie in memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def same_channels(self, dim: int, other: _Layout, other_dim: int) -> bool:
        """Return whether a dimension counts the same channels as one of another view of the same memory."""
        alike = self.shape[dim] == other.shape[other_dim]
        return alike and self.stride[dim] == other.stride[other_dim]


def _layout(tensor: Tensor) -> _Layout:
    return _Layout(tuple(tensor.shape), tensor.stride())


@dataclass(frozen=True)
class _Made:
    """The output of a product. The reference keeps its memory's number from being given again, not the memory."""

    place: Place
    product: Product
    layout: _Layout
    channel_dim: int
    reference: StorageWeakRef


@dataclass(frozen=True)
class _Read:
    """An operation that reads the output of a product; `beside` is the weight or running mean that it reads too."""

    operation: Any
    layout: _Layout
    beside: Tensor | None


@dataclass
class Uses:
    """What reads weights, and the outputs of products, during a forward pass.

    Args:
        weights: those of the model.
        of_weights: weight -> operations that are no products and read it.
    """

    weights: Weights
    of_weights: dict[str, set[str]] = field(default_factory=dict)
    _made: dict[int, _Made] = field(default_factory=dict)
    _read: dict[Place, list[_Read]] = field(default_factory=dict)
    _normalised: Counter[int] = field(default_factory=Counter)

    def made(self, place: Place, product: Product, output: Tensor) -> None:
        """Take down the output of a product."""
        reference = StorageWeakRef(output.untyped_storage())
        made = _Made(place, product.alone(), _layout(output), product.channel_dim(output), reference)
        self._made[memory(output)] = made

    def entered(self, product: Product) -> None:
        """Take down what a product reads beside its own weight and bias."""
        assert product.entering is not None
        self.read((product.entering,), "product")
        self._took_weight(product.entering, "a product as its input")

    def read(self, tensors: Any, operation: Any, beside: Tensor | None = None) -> None:
        """Take down that an operation reads tensors."""

        def took(tensor: Tensor) -> None:
            made = self._made.get(memory(tensor))
            if made is not None:
                self._read.setdefault(made.place, []).append(_Read(operation, _layout(tensor), beside))

        mapped(tensors, took)

    def passed(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Take down an operation that is no product. A view of a tensor is the tensor itself."""
        packet, beside = func.overloadpacket, None
        if packet in _NORMS and isinstance(args[3], Tensor):
            beside = args[3]
            self._normalised[memory(beside)] += 1
        elif packet in _SUMS and len(args) == 2 and not kwargs:
            beside = next((each for each in args if self.weights.name(each) is not None), None)
        if func.is_view or packet is aten._unsafe_view:
            return
        self.read((args, kwargs), packet, beside)
        mapped((args, kwargs), lambda tensor: self._took_weight(tensor, packet.__name__))

    def _took_weight(self, tensor: Tensor, operation: str) -> None:
        name = self.weights.name(tensor)
        if name is not None:
            self.of_weights.setdefault(name, set()).add(operation)

    def constants(self, model: nn.Module, wanted: set[str]) -> dict[Place, Constant]:
        """Find the constants of the wanted weights' products; products that have none are left out."""
        norms = {
            memory(module.running_mean): name
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        }
        found: dict[WeightPart, dict[Place, Constant | None]] = {}
        for made in self._made.values():
            if made.place[0] in wanted:
                of_part = found.setdefault(self.weights.part(made.product.weight), {})
                of_part[made.place] = self._constant(made, norms)
        return dict(_unshared(found))

    def _constant(self, made: _Made, norms: Mapping[int, str]) -> Constant | None:
        bias, uses = made.product.bias, self._read.get(made.place, [])
        if bias is not None:
            name = self.weights.name(bias)
            return None if name is None or name in self.of_weights else Constant("bias", bias, 1.0)
        if len(uses) != 1 or uses[0].beside is None:
            return None
        (use,), beside = uses, uses[0].beside
        if use.operation in _NORMS:
            alone = self._normalised[memory(beside)] == 1 and memory(beside) in norms
            fits = alone and made.layout.same_channels(made.channel_dim, use.layout, 1)
            return Constant(norms[memory(beside)], beside, -1.0) if fits else None
        fits = beside.dim() == 1 and len(beside) == use.layout.shape[-1]
        fits = fits and made.layout.same_channels(made.channel_dim, use.layout, -1)
        return Constant("bias", beside, 1.0) if fits else None


def _unshared(found: Mapping[WeightPart, Mapping[Place, Constant | None]]) -> Iterator[tuple[Place, Constant]]:
    """Yield the constants that all products with a part of a weight have, and no others."""
    alike = {part: {_where(constant) for constant in places.values()} for part, places in found.items()}
    users = Counter(where for each in alike.values() for where in each)
    for part, places in found.items():
        for place, constant in places.items():
            if constant is not None and len(alike[part]) == 1 and users[_where(constant)] == 1:
                yield place, constant


def _where(constant: Constant | None) -> tuple[int, int] | None:
    return None if constant is None else (memory(constant.tensor), int(constant.tensor.storage_offset()))
