"""What is coupled in a model before it is pruned, as plain values: for tables, JSON and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from hfp.costs.macs import macs_per_weight
from hfp.errors import listed
from hfp.layers.products import PRODUCTS, counts_of, weight_entries
from hfp.pruning.own_copy import MEND_HOOKS
from hfp.pruning.part import started
from hfp.pruning.reasons import by_reason, reason_lines
from hfp.reconstruct import Coupling, MapError
from hfp.reconstruct.coupling.members import Member
from hfp.reconstruct.coupling.tracing import check_followable


@dataclass(frozen=True)
class GroupReport:
    """One coupled group.

    Args:
        name: the layer that writes its channels first.
        channels: how many can go, one by one.
        members: the layers that the channels run through. Where a layer has more indices in the group than there are
            channels, several of them go with each channel, as the parts of an attention head do.
        ties: the operations that make channels of different layers go together.
        linked: other groups that must lose the same share.
    """

    name: str
    channels: int
    members: tuple[Member, ...]
    ties: tuple[str, ...]
    linked: tuple[str, ...]

    def counted(self, role: str) -> list[str]:
        """The layers of one role ("writes", "reads" or "carries").

        Where several indices of a layer go with each channel, as those of an attention head do, it says how many.
        """
        found = [member for member in self.members if member.role == role]
        each = [member.indices / self.channels for member in found]
        return [
            member.layer if count == 1 else f"{member.layer} ({count:.3g} each)"
            for member, count in zip(found, each, strict=True)
        ]


@dataclass(frozen=True)
class Layer:
    """A layer that has parameters.

    Args:
        name: the module's name.
        kind: its class.
        inputs, outputs: how many channels it reads and writes; None for a layer of which that isn't known.
        parameters: how many there are.
        macs: multiply-accumulates of one forward pass; None for a layer that isn't a convolution or linear.
        reason: why none of its outputs can go; None where some can, or where it writes none.
    """

    name: str
    kind: str
    inputs: int | None
    outputs: int | None
    parameters: int
    macs: int | None
    reason: str | None


@dataclass(frozen=True)
class CoupledReport:
    """The coupled groups of a model, its layers, and what would be left alone.

    Args:
        model: what a person called it.
        macs, parameters: of the full model, for one forward pass of the example inputs.
        groups: the coupled groups, in the order of the layers.
        layers: every layer that has parameters.
        unknown: operations that are not followed; the channels that reach them stay.
        notes: sentences about what was not looked at.
    """

    model: str
    macs: int
    parameters: int
    groups: tuple[GroupReport, ...]
    layers: tuple[Layer, ...]
    unknown: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def shown(self) -> Group:
        """A table of the groups, and one line for each reason to leave layers alone."""
        table = Table()
        for column in ("group", "channels", "written by", "read by", "tied by"):
            table.add_column(column, justify="right" if column == "channels" else "left", overflow="fold")
        for group in self.groups:
            ties = [*group.ties, *(f"the same share as {name}" for name in group.linked)]
            cells = (group.counted("writes"), group.counted("reads"), ties)
            table.add_row(group.name, f"{group.channels:,}", *(listed(names, "\n", most=4) for names in cells))
        found = f"{self.model}: {len(self.groups)} coupled groups, {self.parameters:,} parameters, {self.macs:,} MACs"
        return Group(Text(found), table, *(Text(line) for line in self._lines()))

    def _lines(self) -> Iterator[str]:
        yield from self.notes
        yield from reason_lines("left alone", self._left_alone())
        if self.unknown:
            yield f"operations that are not followed: {', '.join(self.unknown)}"

    @property
    def left_alone(self) -> Mapping[str, list[str]]:
        """Reason -> the layers that keep all their outputs because of it."""
        return by_reason(self._left_alone())

    def _left_alone(self) -> Iterator[tuple[str, str]]:
        return ((layer.name, layer.reason) for layer in self.layers if layer.reason is not None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@torch.inference_mode(False)
def coupled_report(model: nn.Module, example_inputs: Any, name: str, part: str | None = None) -> CoupledReport:
    """Find the coupled groups of a model, checked with numbers as a pruning checks them.

    Args:
        model: the full model; it is not changed, and a copy without hooks that are plain functions runs in its place.
        example_inputs: what it is called with: at least two samples, a tuple or list is unpacked, a dict are keywords.
        name: what to call it.
        part: the name of a module; the report is about what runs inside it, as `hfp.prune(part=...)` prunes it.

    Raises:
        InputError: the model does not run on the inputs, or there is no such part, or it does not run exactly once.
        MapError: the model can't be followed, or nothing of it can be removed.

    >>> import torch
    >>> from torch import nn
    >>> from hfp.pruning.coupled import coupled_report
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> report = coupled_report(model, torch.randn(2, 4), "mine")
    >>> report.groups[0].name, report.groups[0].channels, dict(report.left_alone)
    ('0', 8, {'it is an output of the model': ['2']})
    """
    check_followable(model)
    own, hooked, found, costs = started(model, example_inputs, part)
    run, inputs = found.view(own), found.inputs
    coupling = Coupling.trace(run, inputs, whole_tensors=found.shared)
    if not coupling.names:
        raise MapError(f"nothing can be removed from {part or 'this model'}: {found.why_nothing(coupling)}")
    coupling = coupling.verified(run, inputs)
    others = {name: tuple(other for other in linked if other != name) for linked in coupling.linked for name in linked}
    groups = tuple(
        GroupReport(group, channels, coupling.members(group), coupling.ties(group), others.get(group, ()))
        for group, channels in coupling.sizes.items()
    )
    layers = tuple(layer for layer in _layers(run, inputs, coupling) if found.holds(layer.name))
    called = name if part is None else f"{name}, {part}"
    unknown = tuple(sorted(coupling.unknown))
    notes = (f"hooks of {listed(hooked, most=4)} were not called{MEND_HOOKS}",) if hooked else ()
    return CoupledReport(called, int(costs["macs"]), int(costs["params"]), groups, layers, unknown, notes)


def _layers(model: nn.Module, example_inputs: Any, coupling: Coupling) -> tuple[Layer, ...]:
    uses, alone = macs_per_weight(model, example_inputs), coupling.left_alone
    found = []
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if own and "parametrizations" not in name.split("."):
            weight = f"{name}.weight".lstrip(".")
            cost = uses[weight] * weight_entries(module) if isinstance(module, PRODUCTS) and weight in uses else None
            read, written = counts_of(module) or (None, None)
            found.append(
                Layer(
                    name or "(model)",
                    type(module).__name__,
                    getattr(module, read) if read else None,
                    getattr(module, written) if written else None,
                    sum(parameter.numel() for parameter in own.values()),
                    cost,
                    alone.get(name),
                )
            )
    return tuple(found)
