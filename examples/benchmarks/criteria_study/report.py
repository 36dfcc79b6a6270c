"""The tables of a page, from results."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from criteria_study.entries import ALL, ENTRIES, label, wins_for_us
from criteria_study.log import Row, values
from criteria_study.pruned import RATIOS


@dataclass(frozen=True)
class Way:
    """A table of accuracies: which protocol, and after which repair."""

    protocol: str
    repair: str
    title: str


Line = tuple[str, str, Mapping[float, Mapping[int, float]]]
"""Criterion, ranking, ratio -> accuracies by seed."""

WAYS = (
    Way("once", "none", "at once, no repair"),
    Way("once", "batch-norm", "at once, batch-norm recalibrated"),
    Way("once", "closed form", "at once, closed-form repair"),
    Way("tuned", "epoch", "at once, one epoch of fine-tuning"),
    Way("steps", "batch-norm", "ten steps, scored anew and batch-norm recalibrated at each"),
)


Choice = tuple[str, str, str]
"""Criterion, ranking, repair."""

GAINS: tuple[tuple[str, Choice, Choice], ...] = tuple(
    (f"{what}, {name}", (name, *after), (name, *before))
    for what, after, before in (
        ("batch-norm recalibration, measured ranking", ("measured", "batch-norm"), ("measured", "none")),
        ("closed-form repair, measured ranking", ("measured", "closed form"), ("measured", "batch-norm")),
        (
            "measured in place of layer ranking, batch-norm recalibrated",
            ("measured", "batch-norm"),
            ("layer", "batch-norm"),
        ),
        (
            "measured in place of global ranking, batch-norm recalibrated",
            ("measured", "batch-norm"),
            ("global", "batch-norm"),
        ),
        (
            "measured in place of layer ranking, closed-form repair",
            ("measured", "closed form"),
            ("layer", "closed form"),
        ),
    )
    for name in ("kronecker", "l1")
) + tuple(
    (
        f"kronecker in place of {name}, {ranking} ranking, {repair}",
        ("kronecker", ranking, repair),
        (name, ranking, repair),
    )
    for name, ranking, repair in (
        ("l1", "measured", "batch-norm"),
        ("group-fisher", "measured", "batch-norm"),
        ("group-fisher joint repaired", "measured", "batch-norm"),
        ("l1", "layer", "batch-norm"),
        ("l1", "measured", "closed form"),
    )
)


def report(rows: list[Row]) -> str:
    """All tables as Markdown: how far ahead, then every network's own."""
    parts = [margins(rows), overall(rows), gains(rows), correlations(rows), times(rows)]
    for network in networks(rows):
        mine = [row for row in rows if row["trained"] == network]
        full = cell(values(mine, "accuracy", protocol="trained").values(), 100)
        parts += [f"## {network}\n\nUnpruned: {full} %.\n", *(accuracies(mine, way) for way in WAYS)]
    return "\n".join(part for part in parts if part)


def networks(rows: Iterable[Row]) -> list[str]:
    """The networks in the results."""
    return list(dict.fromkeys(row["trained"] for row in rows))


def cell(found: Iterable[float], scale: float = 1.0, digits: int = 1) -> str:
    """Mean ± spread (standard deviation over seeds)."""
    scaled = [scale * value for value in found]
    if not scaled:
        return ""
    spread = f" ± {statistics.stdev(scaled):.{digits}f}" if len(scaled) > 1 else ""
    return f"{statistics.mean(scaled):.{digits}f}{spread}"


def table(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    whole = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in whole) + "\n"


def lines_of(rows: list[Row], way: Way) -> Iterator[Line]:
    """Every line of a table of accuracies."""
    which = {"protocol": way.protocol, "repair": way.repair}
    for name in ENTRIES:
        for ranking in ALL:
            found = {
                ratio: values(rows, "accuracy", **which, criterion=name, ranking=ranking, ratio=ratio)
                for ratio in RATIOS
            }
            if any(found.values()):
                yield name, ranking, found


def complete(lines: list[Line], ratio: float) -> list[Line]:
    """The lines with the most seeds at a ratio, which alone compare."""
    most = max(len(found[ratio]) for _, _, found in lines)
    return [line for line in lines if most and len(line[2][ratio]) == most]


def accuracies(rows: list[Row], way: Way) -> str:
    """One network's accuracies, the best of each column in bold."""
    lines = list(lines_of(rows, way))
    if not lines:
        return ""
    best = {ratio: max((_mean(found[ratio]) for _, _, found in complete(lines, ratio)), default=0) for ratio in RATIOS}
    shown = []
    for name, ranking, found in lines:
        cells = [cell(found[ratio].values(), 100) for ratio in RATIOS]
        bold = [
            f"**{text}**" if text and _mean(found[r]) == best[r] else text
            for r, text in zip(RATIOS, cells, strict=True)
        ]
        shown.append([label(name), ranking, *bold])
    header = ["criterion", "ranking", *(f"{100 * ratio:.0f} % removed" for ratio in RATIOS)]
    return f"### Accuracy in %, {way.title}\n\n{table(header, shown)}"


def margins(rows: list[Row]) -> str:
    """By how many points our best line is ahead of torch-pruning's best, paired by seed."""
    shown = []
    for network in networks(rows):
        mine = [row for row in rows if row["trained"] == network]
        for way in WAYS:
            lines = list(lines_of(mine, way))
            if lines:
                shown.append([network, way.title, *(margin(lines, ratio) for ratio in RATIOS)])
    header = ["network", "", *(f"{100 * ratio:.0f} % removed" for ratio in RATIOS)]
    return f"## Our best line against torch-pruning's best, in points\n\n{table(header, shown)}" if shown else ""


def overall(rows: list[Row]) -> str:
    """Every line of ours against torch-pruning's best line of each network and ratio: means over networks by seed."""
    shown = []
    for way in WAYS:
        by_network = [list(lines_of([row for row in rows if row["trained"] == name], way)) for name in networks(rows)]
        by_network = [lines for lines in by_network if lines]
        ours = dict.fromkeys(
            (name, ranking) for lines in by_network for name, ranking, _ in lines if wins_for_us(name, ranking)
        )
        for name, ranking in ours:
            found = [lead(by_network, name, ranking, ratio) for ratio in RATIOS]
            if any(found):
                shown.append([way.title, name, ranking, *found])
    header = ["", "criterion", "ranking", *(f"{100 * ratio:.0f} % removed" for ratio in RATIOS)]
    title = "## Our lines against torch-pruning's best of each network, in points, mean over networks"
    return f"{title}\n\n{table(header, shown)}" if shown else ""


def lead(by_network: list[list[Line]], name: str, ranking: str, ratio: float) -> str:
    """The mean over networks of a line's lead, its spread over seeds, and on how many networks it leads."""
    gains: list[dict[int, float]] = []
    for lines in by_network:
        mine = next((found[ratio] for *key, found in lines if key == [name, ranking]), {})
        others = [line[2][ratio] for line in complete(lines, ratio) if not wins_for_us(line[0], line[1])]
        if mine and others:
            rival = max(others, key=_mean)
            gains.append({seed: 100 * (mine[seed] - rival[seed]) for seed in mine if seed in rival})
    if len(gains) < len(by_network) or not gains:
        return ""
    seeds = set.intersection(*(set(gain) for gain in gains))
    ahead = sum(_mean(gain) > 0 for gain in gains)
    means = [statistics.mean(gain[seed] for gain in gains) for seed in sorted(seeds)]
    return f"{signed(means)} ({ahead} of {len(gains)})" if means else ""


def gains(rows: list[Row]) -> str:
    """What one option adds when all else stays: means over networks, paired by seed."""
    shown = []
    for what, after, before in GAINS:
        found = [gain(rows, after, before, ratio) for ratio in RATIOS]
        if any(found):
            shown.append([what, *found])
    header = ["", *(f"{100 * ratio:.0f} % removed" for ratio in RATIOS)]
    title = "## What one choice adds at once, in points, mean over networks"
    return f"{title}\n\n{table(header, shown)}" if shown else ""


def gain(rows: list[Row], after: Choice, before: Choice, ratio: float) -> str:
    """The mean difference over the networks, of the seeds that all of them have for both."""
    differences: list[dict[int, float]] = []
    for network in networks(rows):
        mine = [row for row in rows if row["trained"] == network]
        more, less = (
            values(mine, "accuracy", protocol="once", criterion=name, ranking=ranking, repair=repair, ratio=ratio)
            for name, ranking, repair in (after, before)
        )
        differences.append({seed: 100 * (more[seed] - less[seed]) for seed in more if seed in less})
    seeds = set.intersection(*(set(found) for found in differences))
    return signed([statistics.mean(found[seed] for found in differences) for seed in sorted(seeds)]) if seeds else ""


def margin(lines: list[Line], ratio: float) -> str:
    """The mean difference of the two best lines, its spread, and their names."""
    found = [(name, ranking, accuracies[ratio]) for name, ranking, accuracies in complete(lines, ratio)]
    ours = [line for line in found if wins_for_us(line[0], line[1])]
    others = [line for line in found if not wins_for_us(line[0], line[1])]
    if not ours or not others:
        return ""
    best, rival = (max(side, key=lambda line: _mean(line[2])) for side in (ours, others))
    differences = [100 * (best[2][seed] - rival[2][seed]) for seed in best[2] if seed in rival[2]]
    return f"{signed(differences)} ({best[0]}, {best[1]} / {rival[0]}, {rival[1]})" if differences else ""


def signed(differences: list[float]) -> str:
    """Mean ± spread with its sign."""
    text = cell(differences)
    return text if text.startswith("-") else f"+{text}"


def correlations(rows: list[Row]) -> str:
    """Leaving one out, a column pair for each network."""
    shown = []
    names = networks(rows)
    for name in ENTRIES:
        found = [
            cell(
                values([r for r in rows if r["trained"] == network], key, protocol="alone", criterion=name).values(),
                1,
                3,
            )
            for network in names
            for key in ("network", "layers")
        ]
        if any(found):
            shown.append([label(name), *found])
    header = ["criterion", *(f"{network}, {what}" for network in names for what in ("whole", "per group"))]
    title = "## Leave one out: Spearman's correlation of scores and measured losses"
    return f"{title}\n\n{table(header, shown)}" if shown else ""


def times(rows: list[Row]) -> str:
    """Processor time of scoring data, per plain forward and backward."""
    measured = [row for row in rows if row["protocol"] == "time"]
    shown = []
    for name in dict.fromkeys(row["criterion"] for row in measured):
        found = [
            cell(values([r for r in measured if r["trained"] == network], "ratio", criterion=name).values(), 1, 2)
            for network in networks(measured)
        ]
        shown.append([label(name), *found])
    title = "## Time to score, per plain forward and backward"
    return f"{title}\n\n{table(['criterion', *networks(measured)], shown)}" if shown else ""


def _mean(found: Mapping[int, float]) -> float:
    return statistics.mean(found.values()) if found else -1.0
