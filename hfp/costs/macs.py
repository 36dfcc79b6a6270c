"""Counts what a model costs: multiply-accumulates, parameters, bytes and seconds of a forward pass."""

from __future__ import annotations

import statistics
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hfp.layers.calling import buffers_kept, call, modes_kept, random_state_kept, results, unfused
from hfp.layers.flops import flops, formula_of, is_composite
from hfp.layers.products import PRODUCTS, counts_of, multiplies_inputs
from hfp.reconstruct.coupling.meta_results import meta_result

TRAINING_FACTOR = 3  # a training step costs a forward pass and, by the usual count, two more for the backward one


def macs(model: nn.Module, example_inputs: Any) -> int:
    """Count the multiply-accumulates of one forward pass of `example_inputs`, whatever its batch.

    Convolutions and products count, by PyTorch's own formulas. The model runs in evaluation mode. It is left as it was,
    and so are the random states, which layers may draw from.

    >>> from hfp.costs.macs import macs
    >>> macs(torch.nn.Linear(3, 4), torch.zeros(2, 3))
    24
    """
    counter = _Counter()
    with _left_as_it_was(model), unfused(model), counter:  # fused layers hide their products
        model.eval()
        call(model, example_inputs)
    return counter.flops // 2


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put the model's modes and buffers and the random states back on leaving; inside, they are seeded."""
    with modes_kept(model), buffers_kept(model), random_state_kept(seed=0), torch.no_grad():
        yield


class _Counter(TorchDispatchMode):
    """Adds up the floating-point operations of everything that runs inside.

    It counts what PyTorch's `FlopCounterMode` counts, but does not take batch-norm layers apart, which is most of the
    time that one takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        formula = formula_of(function)
        if formula is None and is_composite(function):
            with self:
                result = function.decompose(*args, **given)
            if result is not NotImplemented:
                return result
        result = meta_result(function, function._schema.name.split("::")[1], args, given)
        if result is None:
            result = function(*args, **given)
        if formula is not None:
            self.flops += flops(formula, args, given, result)
        return result


def macs_per_weight(model: nn.Module, example: Any) -> dict[str, int]:
    """Count how many multiply-accumulates a weight of each convolution and linear layer takes part in.

    The count is for one forward pass of `example` and is at least 1. All weights of a layer have the same count. The
    model is left as it was.

    Returns:
        Parameter name to count, in the order of the modules.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, PRODUCTS)}
    uses = {f"{name}.weight".lstrip("."): 0 for name in layers}
    hooks = [
        layer.register_forward_hook(partial(_count_uses, uses, name), with_kwargs=True)
        for name, layer in zip(uses, layers.values(), strict=True)
    ]
    try:
        macs(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: max(count, 1) for name, count in uses.items()}


def _count_uses(
    uses: dict[str, int], name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    """Count one call of a layer, whose input may be a keyword, and which may return more than its product."""
    counts = counts_of(layer)
    assert counts is not None
    passed, channels = ((args, kwargs), counts[0]) if multiplies_inputs(layer) else (output, counts[1])
    uses[name] += results(passed)[0].numel() // getattr(layer, str(channels))


def decides_costs(model: nn.Module) -> Hashable:
    """Return what two models of one architecture must have in common to cost the same.

    These are the shapes of their parameters. A model that does not always run all of itself has `runs`, a text that
    says how much of it does.
    """
    runs = getattr(model, "runs", "")
    return tuple(parameter.shape for parameter in model.parameters()), runs if isinstance(runs, str) else ""


class MacCounter:
    """Counts the multiply-accumulates of models for one example, once for every set of parameter shapes."""

    def __init__(self, example: Tensor) -> None:
        self.example = example
        self._counted: dict[Hashable, int] = {}

    def __call__(self, model: nn.Module) -> int:
        """Return the multiply-accumulates of the example's forward pass through `model`."""
        shapes = decides_costs(model)
        if shapes not in self._counted:
            device = next((tensor.device for tensor in model.parameters()), self.example.device)
            self._counted[shapes] = macs(model, self.example.to(device))
        return self._counted[shapes]


def parameters(model: nn.Module) -> int:
    """Count a model's parameters; one that is shared counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def state_bytes(model: nn.Module) -> int:
    """Count the bytes of a model's state; a tensor that is shared counts once."""
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def latencies(models: Sequence[nn.Module], example_inputs: Any, repeats: int = 9) -> list[float]:
    """Measure the seconds of a forward pass of each model in evaluation mode, on its device, as medians of `repeats`.

    The models take turns, so that other work on the machine slows all of them. Two passes of each warm up. The models
    and the random states are left as they were.
    """
    seconds: list[list[float]] = [[] for _ in models]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(_left_as_it_was(model))
            model.eval()
        for _ in range(repeats + 2):
            for model, found in zip(models, seconds, strict=True):
                found.append(_seconds(model, example_inputs))
    return [statistics.median(found[2:]) for found in seconds]


def _seconds(model: nn.Module, example_inputs: Any) -> float:
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type != "cpu"}
    start = time.perf_counter()
    call(model, example_inputs)
    for device in devices:
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start
