"""What was asked of a pruning and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group
from rich.text import Text

from hfp.pruning.layers_report import LayerReport
from hfp.pruning.repair.report import RepairReport, repair_lines
from hfp.pruning.tables import cost_lines, cost_table, html, layer_table, left_alone_lines, limit_lines

_MOST_LINES = 12  # of notes and reasons in a repr


@dataclass(frozen=True, repr=False)
class PruneReport:
    """What was asked for and what came out.

    Args:
        budget: as text, such as "macs=0.5".
        criterion: its name.
        ratio: the share of all channels of the coupled groups that is gone.
        costs: "macs" (multiply-accumulates of one forward pass of the example inputs), "params", "bytes" and, where it
            was measured, "latency" (seconds): before and after.
        layers: every layer with parameters.
        unknown: operations that are not followed; channels that reach them stay.
        repairs: what the last step's repairs did.
        distance: limited cost -> how far below its limit the model is, as a share of the full model's cost; negative
            where it is above, as a measured latency may be.
        notes: sentences about what could not be done as asked.
        part: the module that was pruned, which the costs and layers are of; None where it was the whole model.
        ranking: how it was chosen what each layer loses.
    """

    budget: str
    criterion: str
    ratio: float
    costs: Mapping[str, tuple[float, float]]
    layers: tuple[LayerReport, ...]
    unknown: tuple[str, ...] = ()
    repairs: tuple[RepairReport, ...] = ()
    distance: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    part: str | None = None
    ranking: str = "layer"

    @property
    def met(self) -> bool:
        """Whether the model is below all of the budget's limits."""
        return all(distance >= 0 for distance in self.distance.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "met": self.met}

    def shown(self) -> Group:
        """The summary, a table of all layers, why layers were left alone, and what repairs did.

        With a least-squares repair, the table's last column is what each layer's outputs miss of the full model's, as a
        share of their variance, before and after.
        """
        return Group(
            Text(self.headline),
            *(Text(line) for line in limit_lines(self.costs, self.distance)),
            cost_table(self.costs),
            layer_table(self.layers, self._errors()),
            *(Text(line) for line in self._lines()),
        )

    @property
    def headline(self) -> str:
        """The result in a sentence."""
        able = [layer for layer in self.layers if layer.inputs is not None]
        lost = sum(layer.after < layer.before for layer in able)
        what = "" if self.part is None else f"{self.part}, a part of the model, "
        return (
            f"Pruned {what}to {self.budget} by {self.criterion}: {lost} of {len(able)} layers lost outputs, "
            f"{self.ratio:.1%} of the channels that can go are gone."
        )

    def _errors(self) -> dict[str, tuple[float, float]]:
        """Layer -> what its outputs miss of the full model's, before and after repairs."""
        return {each.name: each.error for repair in self.repairs for each in repair.layers if each.error is not None}

    def _lines(self) -> list[str]:
        return [*self.notes, *left_alone_lines(self.layers), *repair_lines(self.repairs)]

    def __repr__(self) -> str:
        lines = self._lines()
        more = [f"... and {len(lines) - _MOST_LINES} more lines in .shown()"] if len(lines) > _MOST_LINES else []
        found = [self.headline, *cost_lines(self.costs, self.distance), *lines[:_MOST_LINES], *more]
        return "\n".join(line if len(line) <= 160 else f"{line[:157]}..." for line in found)

    def _repr_html_(self) -> str:
        lines = [*limit_lines(self.costs, self.distance), *self._lines()]
        return html(self.headline, self.layers, self.costs, lines, self._errors())
