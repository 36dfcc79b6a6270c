"""One HTML page of a model's coupled groups. It opens from disk, has no scripts, fetches nothing, is light or dark.

Layers are rows in the order of the model. Each group is a coloured line down the rows, with a dot at every layer that
its channels run through. Lines share a lane where they do not overlap, so that few lanes are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hfp.errors import listed
from hfp.pages import page_from
from hfp.pruning.coupled import CoupledReport, GroupReport, Layer
from hfp.pruning.layers_report import LayerReport

ROW, LANE, LEFT = 22, 16, 20
"""Pixels: the height of a row, the width of a lane, the space before the first lane."""

LETTER, TEXT = 8, 592
"""Pixels: the most that a letter of a layer's text is wide, and the space for it unless one is longer."""

COLOURS = 10
"""How many colours the page has; groups beyond take them again."""


@dataclass(frozen=True)
class Dot:
    """A group at a layer. role: "writes", "reads" or "carries". y: pixels. about: what hovering says."""

    role: str
    y: int
    about: str


@dataclass(frozen=True)
class Lane:
    """A group as it is drawn. x, first, last: pixels. dots: from top to bottom. about: what hovering says."""

    group: GroupReport
    colour: int
    x: int
    first: int
    last: int
    dots: tuple[Dot, ...]
    about: str


def coupled_page(report: CoupledReport, pruned: Sequence[LayerReport] = ()) -> str:
    """Make the whole page from the template `pruning/coupled_page.html.jinja`.

    Args:
        report: what is coupled in the full model.
        pruned: what a pruning left of the layers, which is shown beside them; by default nothing was pruned.
    """
    left = {layer.name: layer for layer in pruned}
    lanes = lanes_of(report)
    width = LEFT + LANE * (1 + max((lane.x - LEFT) // LANE for lane in lanes)) if lanes else LEFT
    most = max((layer.macs or 0 for layer in report.layers), default=0) or 1
    labels = {layer.name: label(layer, left.get(layer.name)) for layer in report.layers}
    longest = max((sum(map(len, parts)) for parts in labels.values()), default=0)
    text = width + 12
    return page_from(
        "pruning/coupled_page.html.jinja",
        report=report,
        lanes=lanes,
        colour_of={lane.group.name: lane.colour for lane in lanes},
        text=text,
        bars=text + 8 + max(TEXT, LETTER * (longest + 1)),
        label_of=labels,
        row=ROW,
        height=ROW * (len(report.layers) + 1),
        rows=[
            (ROW * (place + 1), layer, 120 * (layer.macs or 0) / most, left.get(layer.name))
            for place, layer in enumerate(report.layers)
        ],
        pruned=bool(pruned),
        about=about_layer,
        colours=COLOURS,
    )


def lanes_of(report: CoupledReport) -> list[Lane]:
    """Place each group in the first lane that is free from its first layer to its last."""
    rows = {layer.name: place for place, layer in enumerate(report.layers)}
    placed: list[Lane] = []
    taken: list[int] = []  # the last row in use of each lane
    for index, (group, spots) in enumerate(_by_first_row(report, rows)):
        first, last = spots[0][0], spots[-1][0]
        lane = next((place for place, end in enumerate(taken) if end < first), len(taken))
        taken[lane : lane + 1] = [last]
        dots = tuple(Dot(role, ROW * (row + 1), about) for row, role, about in spots)
        placed.append(Lane(group, index % COLOURS, LEFT + LANE * lane, dots[0].y, dots[-1].y, dots, about_group(group)))
    return placed


def _by_first_row(
    report: CoupledReport, rows: dict[str, int]
) -> list[tuple[GroupReport, Sequence[tuple[int, str, str]]]]:
    found = []
    for group in report.groups:
        spots = []
        for member in group.members:
            row = rows.get(member.layer, rows.get(member.layer.rpartition(".")[0] or "(model)"))
            if row is not None:
                about = f"{member.layer} {member.role} {member.indices} of its {member.size}: group {group.name}"
                spots.append((row, member.role, about))
        if spots:
            found.append((group, sorted(spots)))
    return sorted(found, key=lambda each: each[1][0][0])


def about_group(group: GroupReport) -> str:
    """Return what hovering over a group's line says."""
    lines = [f"group {group.name}: {group.channels} channels"]
    for role in ("writes", "reads", "carries"):
        if layers := group.counted(role):
            lines.append(f"{role}: {listed(layers, most=6)}")
    if group.ties:
        lines.append(f"tied by: {listed(group.ties, most=6)}")
    if group.linked:
        lines.append(f"loses the same share as: {listed(group.linked, most=6)}")
    return "\n".join(lines)


def label(layer: Layer, left: LayerReport | None = None) -> tuple[str, str, str]:
    """Return what stands beside a layer's dots: its name, its kind with its sizes, and what is left of these."""
    read = f"{layer.inputs} → " if layer.inputs not in (None, layer.outputs) else ""
    sizes = "" if layer.outputs is None else f", {read}{layer.outputs}"
    if left is None or left.parameters[0] == left.parameters[1]:
        return layer.name, f" {layer.kind}{sizes}", ""
    left_to_read = f"{left.inputs[1]} → " if left.inputs else ""
    return layer.name, f" {layer.kind}{sizes}", f" left: {left_to_read}{left.after}"


def about_layer(layer: Layer, left: LayerReport | None = None) -> str:
    """Return what hovering over a layer says."""
    lines = [f"{layer.name}: {layer.kind}", f"{layer.parameters:,} parameters"]
    if layer.outputs is not None:
        read = "" if layer.inputs is None else f"{layer.inputs} inputs, "
        lines.append(f"{read}{layer.outputs} outputs")
    if layer.macs is not None:
        lines.append(f"{layer.macs:,} multiply-accumulates")
    if left is not None and left.parameters[0] != left.parameters[1]:
        read = "" if left.inputs is None else f"{left.inputs[1]} of {left.inputs[0]} inputs, "
        lines.append(f"left: {read}{left.after} of {left.before} outputs, {left.parameters[1]:,} parameters")
    if layer.reason is not None:
        lines.append(f"keeps all its outputs: {layer.reason}")
    return "\n".join(lines)
