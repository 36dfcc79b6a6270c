"""Call a model on example inputs and leave its modes as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


def call(model: nn.Module, example_inputs: Any) -> Any:
    """The model's output for example inputs given as one value, a tuple or list of arguments, or a dict of keywords."""
    if isinstance(example_inputs, Mapping):
        return model(**example_inputs)
    return model(*example_inputs) if isinstance(example_inputs, list | tuple) else model(example_inputs)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Training and evaluation mode may change inside; every module's own is put back, also after an error."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
