"""Report what a repair did, as plain values and as lines."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hfp.errors import counted
from hfp.pruning.reasons import reason_lines


@dataclass(frozen=True)
class LayerRepair:
    """One repaired layer.

    Args:
        name: the layer's name.
        where: what was changed, such as "bias" or the name of a batch-norm layer.
        error: what the outputs miss of the full model's, as a share of their variance on the data of the repair, before
            and after; None where it isn't measured, or where they don't vary.
    """

    name: str
    where: str
    error: tuple[float, float] | None = None


@dataclass(frozen=True)
class RepairReport:
    """One repair.

    Args:
        kind: its name.
        samples: on how many samples it was done.
        layers: what it changed.
        left_alone: pairs of a layer and the reason why it could not be repaired.
        outputs: what the model's outputs miss of the full model's, as a share of their variance on the first batch,
            before and after; None where it isn't measured.
    """

    kind: str
    samples: int
    layers: tuple[LayerRepair, ...]
    left_alone: tuple[tuple[str, str], ...] = ()
    outputs: tuple[float, float] | None = None


def repair_lines(reports: Sequence[RepairReport]) -> Iterator[str]:
    """Yield a line for each repair, and one for each reason to leave layers alone."""
    for report in reports:
        if report.layers or report.left_alone:
            yield _headline(report)
        yield from reason_lines(f"not repaired by {report.kind}", report.left_alone)


def _left(layer: LayerRepair) -> float:
    return 0.0 if layer.error is None else layer.error[1]


def _headline(report: RepairReport) -> str:
    errors = [layer.error for layer in report.layers if layer.error is not None]
    line = f"repaired by {report.kind} on {report.samples} samples: {counted(len(report.layers), 'layer')}"
    if errors:
        before, after = (statistics.median(pair[place] for pair in errors) for place in (0, 1))
        line += f", median error of their outputs {before:.1%} → {after:.1%}"
        worst = sorted((layer for layer in report.layers if layer.error is not None), key=_left, reverse=True)[:2]
        line += f" (most is left of {', '.join(f'{layer.name} {_left(layer):.1%}' for layer in worst)})"
    if report.outputs is not None:
        line += f", of the model's {report.outputs[0]:.1%} → {report.outputs[1]:.1%}"
    return line
