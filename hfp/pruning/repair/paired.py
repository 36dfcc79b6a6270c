"""Run the full and the compact model over the same batches, with the full one's outputs at hand for the compact one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hfp.importance.capture.batches import ForwardPass
from hfp.importance.capture.state import untouched
from hfp.layers.calling import modes_kept
from hfp.pruning.repair.readers import Reader

Keep = Callable[[Reader, Tensor], Any]
"""Takes a layer and what the full one gave, cut to the kept outputs; returns what to keep of it for one batch."""


@contextmanager
def kept_outputs(layers: Iterable[Reader], keep: Keep) -> Iterator[dict[str, Any]]:
    """Yield a dict of what `keep` makes of the full layers' outputs, by name; each run of the full model renews it."""
    found: dict[str, Any] = {}
    handles = []
    for layer in layers:

        def hook(_: nn.Module, __: Any, output: Tensor, layer: Reader = layer) -> None:
            found[layer.name] = keep(layer, layer.target(output.detach()))

        handles.append(layer.full.register_forward_hook(hook))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def over_both(
    full: nn.Module, compact: nn.Module, layers: list[Reader], batches: Iterable[Any], keep: Keep
) -> Iterator[tuple[Mapping[str, Any], int, Callable[[], Any]]]:
    """Yield, for each batch, what was kept of the full outputs, its samples, and a function that runs the compact one.

    Both models are in evaluation mode; nothing of the full one changes, and modes are put back at the end.

    Raises:
        CriterionError: there is no batch, or one that holds no samples.
    """
    run = ForwardPass()
    with untouched(full, parameters_require_grad=False), modes_kept(compact), torch.no_grad():
        compact.eval()
        with kept_outputs(layers, keep) as outputs:
            for batch, size in run.batches(batches, full):
                outputs.clear()
                run.output(full, batch)
                yield outputs, size, partial(run.output, compact, batch)
