"""Call a model on example inputs, and leave its modes and the random state as they were."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def call(model: Callable[..., Any], example_inputs: Any) -> Any:
    """Return the model's output for example inputs.

    These are one value, a tuple or list of arguments, or a dict of keywords. The model gets copies of the tensors in
    them, because it may write into what it is given.
    """
    if isinstance(example_inputs, Mapping):
        example_inputs = dict(example_inputs)
    own = _own(example_inputs, {})
    if isinstance(own, Mapping):
        return model(**own)
    return model(*own) if isinstance(own, list | tuple) else model(own)


def _own(value: Any, known: dict[int, Tensor]) -> Any:
    """The value with copies of the tensors in plain tuples, lists and dicts; one that is there twice stays one."""
    if isinstance(value, Tensor):
        if id(value) not in known:
            known[id(value)] = value.clone()
        return known[id(value)]
    if type(value) is dict:
        return {key: _own(item, known) for key, item in value.items()}
    return type(value)(_own(item, known) for item in value) if type(value) in (list, tuple) else value


def call_in(modes: Sequence[bool], model: nn.Module, example_inputs: Any) -> list[Any]:
    """Return the outputs of one call per mode: the model is in training mode for True, else in evaluation mode."""
    outputs = []
    with modes_kept(model):
        for training in modes:
            outputs.append(call(model.train(training), example_inputs))
    return outputs


def results(output: Any) -> list[Tensor]:
    """Return the tensors in what a model returns.

    They may be nested in lists, tuples, mappings, dataclasses and other plain objects.
    """
    return list(_results(output, {}))


def _results(output: Any, seen: dict[int, Any]) -> Iterator[Tensor]:
    """Yield the tensors; what was seen is kept, so that nothing that is made meanwhile gets its identity."""
    if isinstance(output, Tensor):
        yield output
    elif id(output) not in seen and not isinstance(output, str | bytes | type | nn.Module):
        seen[id(output)] = output
        if isinstance(output, Mapping):
            inside = [*output.values()]
        elif isinstance(output, list | tuple | set | frozenset):
            inside = [*output]
        else:
            inside = [*getattr(output, "__dict__", {}).values(), *_slotted(output)]
        for item in inside:
            yield from _results(item, seen)


def _slotted(output: Any) -> Iterator[Any]:
    for kind in type(output).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(output, name):
                yield getattr(output, name)


@contextmanager
def random_state_kept(seed: int | None = None) -> Iterator[None]:
    """Put the random state of Python, NumPy and torch (all devices) back on leaving.

    Args:
        seed: what all of them are seeded with inside; None, the default, leaves them as they are.
    """
    with torch.random.fork_rng(devices=range(_graphics_cards())), python_and_numpy_kept(seed):
        if seed is not None:
            torch.manual_seed(seed)
        yield


@contextmanager
def python_and_numpy_kept(seed: int | None) -> Iterator[None]:
    """Do for Python's and NumPy's generators alone what `random_state_kept` does for all."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # NumPy takes no larger one
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@cache
def _graphics_cards() -> int:
    """Return how many devices CUDA has; where there are none, PyTorch looks for its driver at every question."""
    return torch.cuda.device_count()


def is_recurrent(model: nn.Module) -> bool:
    """Return whether the model holds PyTorch's recurrent layers."""
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


@contextmanager
def unfused(model: nn.Module, attention: bool = True) -> Iterator[None]:
    """Run attention, transformer and recurrent layers as plain products inside.

    These can be followed and counted.

    Args:
        model: what is run.
        attention: whether the product of queries, keys and values is taken apart too, which needs memory.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        if attention:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if is_recurrent(model):
            stack.enter_context(_plain_recurrence())
        yield


@contextmanager
def _plain_recurrence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about flags of devices that are not there
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
            yield


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put every buffer and its values back on leaving, also after an error."""
    before = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, values in before:
                module._buffers[name] = buffer
                if _can_be_written(buffer):
                    buffer.copy_(values)


def _can_be_written(tensor: Tensor) -> bool:
    """Tell whether a forward pass can write to a tensor: it is not of inference mode, and no view that repeats."""
    repeats = tensor.layout == torch.strided and any(
        size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return not tensor.is_inference() and not repeats


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put every module's training or evaluation mode back on leaving, also after an error."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
