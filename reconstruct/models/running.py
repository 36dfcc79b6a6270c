"""Run a model on example inputs to see whether it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hfp.layers.calling import buffers_kept, call, modes_kept, random_state_kept


def run_error(model: nn.Module, example_inputs: Any) -> str | None:
    """Return why `model` does not run on the inputs, or None if it does.

    It is run in evaluation mode without gradients. A tuple or list of inputs is unpacked, a dict is passed as keywords.
    Every module's mode, the buffers and the random states are put back.
    """
    try:
        with random_state_kept(), modes_kept(model), buffers_kept(model), torch.no_grad():
            model.eval()
            call(model, example_inputs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
