"""The figures of the page's data files, from results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import data_files
from data_files import spread

from criteria_study.entries import ALL, ENTRIES, label, wins_for_us
from criteria_study.log import Row, values
from criteria_study.published import RECIPES


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
    Way("retrained", "none", "at once, trained on"),
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


def networks(rows: Iterable[Row]) -> list[str]:
    """The networks in the results."""
    return list(dict.fromkeys(row["trained"] for row in rows))


def ratios_of(rows: Iterable[Row]) -> list[float]:
    """The shares of the multiply-accumulates that something was pruned by."""
    return sorted({row["ratio"] for row in rows if "repair" in row})


def lines_of(rows: list[Row], way: Way) -> Iterator[Line]:
    """Every line of a table of accuracies."""
    which, ratios = {"protocol": way.protocol, "repair": way.repair}, ratios_of(rows)
    for name in (*ENTRIES, *RECIPES):
        for ranking in ALL:
            found = {
                ratio: values(rows, "accuracy", **which, criterion=name, ranking=ranking, ratio=ratio)
                for ratio in ratios
            }
            if any(found.values()):
                yield name, ranking, found


def complete(lines: list[Line], ratio: float) -> list[Line]:
    """The lines with the most seeds at a ratio, which alone compare."""
    most = max(len(found[ratio]) for _, _, found in lines)
    return [line for line in lines if most and len(line[2][ratio]) == most]


def accuracies(rows: list[Row]) -> Iterator[data_files.Line]:
    """Every network's accuracy in percent: unpruned, and of every criterion, ranking, protocol and share removed."""
    for network, mine in _by_network(rows):
        full = [100 * value for value in values(mine, "accuracy", protocol="trained").values()]
        yield {"network": network, "protocol": "unpruned", "removed": "0", **spread("accuracy", full, ".1f")}
        for way in WAYS:
            for name, ranking, found in lines_of(mine, way):
                for ratio, by_seed in found.items():
                    if by_seed:
                        setting = {"protocol": way.title, "criterion": label(name), "ranking": ranking}
                        accuracy = spread("accuracy", [100 * value for value in by_seed.values()], ".1f")
                        yield {"network": network, **setting, "removed": _percent(ratio), **accuracy}


def margins(rows: list[Row]) -> Iterator[data_files.Line]:
    """By how many points our best line is ahead of torch-pruning's best on each network, paired by seed."""
    for network, mine in _by_network(rows):
        for way in WAYS:
            lines = list(lines_of(mine, way))
            for ratio in ratios_of(mine) if lines else ():
                found = [(name, ranking, accuracies[ratio]) for name, ranking, accuracies in complete(lines, ratio)]
                ours = [line for line in found if wins_for_us(line[0], line[1])]
                others = [line for line in found if not wins_for_us(line[0], line[1])]
                if ours and others:
                    best, rival = (max(side, key=lambda line: _mean(line[2])) for side in (ours, others))
                    lead = _paired("lead", best[2], rival[2])
                    names = {"ours": best[0], "ranking": best[1], "rival": rival[0], "rival_ranking": rival[1]}
                    yield {"network": network, "protocol": way.title, "removed": _percent(ratio), **lead, **names}


def leads(rows: list[Row]) -> Iterator[data_files.Line]:
    """Every line of ours against torch-pruning's best line of each network and ratio: means over networks by seed."""
    for way in WAYS:
        by_network = [lines for _, mine in _by_network(rows) if (lines := list(lines_of(mine, way)))]
        ours = dict.fromkeys(
            (name, ranking) for lines in by_network for name, ranking, _ in lines if wins_for_us(name, ranking)
        )
        for name, ranking in ours:
            for ratio in ratios_of(rows):
                found = lead(by_network, name, ranking, ratio)
                if found:
                    setting = {"protocol": way.title, "criterion": name, "ranking": ranking}
                    yield {**setting, "removed": _percent(ratio), **found}


def lead(by_network: list[list[Line]], name: str, ranking: str, ratio: float) -> data_files.Line:
    """The mean over networks of a line's lead, its spread over seeds, and on how many networks it leads."""
    gains: list[dict[int, float]] = []
    for lines in by_network:
        mine = next((found[ratio] for *key, found in lines if key == [name, ranking]), {})
        others = [line[2][ratio] for line in complete(lines, ratio) if not wins_for_us(line[0], line[1])]
        if mine and others:
            rival = max(others, key=_mean)
            gains.append({seed: 100 * (mine[seed] - rival[seed]) for seed in mine if seed in rival})
    means = _means(gains)
    if len(gains) < len(by_network) or not means:
        return {}
    ahead = sum(_mean(gain) > 0 for gain in gains)
    return {**spread("lead", means, "+.1f"), "ahead": str(ahead), "networks": str(len(gains))}


def gains(rows: list[Row]) -> Iterator[data_files.Line]:
    """What one option adds when all else stays: means over networks, paired by seed."""
    for what, after, before in GAINS:
        for ratio in ratios_of(rows):
            found = spread("gain", gain(rows, after, before, ratio), "+.1f")
            if found:
                yield {"choice": what, "removed": _percent(ratio), **found}


def gain(rows: list[Row], after: Choice, before: Choice, ratio: float) -> list[float]:
    """The mean difference over the networks in points, for each seed that all of them have for both."""
    differences: list[dict[int, float]] = []
    for _, mine in _by_network(rows):
        more, less = (
            values(mine, "accuracy", protocol="once", criterion=name, ranking=ranking, repair=repair, ratio=ratio)
            for name, ranking, repair in (after, before)
        )
        differences.append({seed: 100 * (more[seed] - less[seed]) for seed in more if seed in less})
    return _means(differences)


def correlations(rows: list[Row]) -> Iterator[data_files.Line]:
    """Leaving one out: Spearman's correlation of scores and measured losses."""
    for name in ENTRIES:
        for network, mine in _by_network(rows):
            for key, over in (("network", "whole"), ("layers", "per group")):
                found = list(values(mine, key, protocol="alone", criterion=name).values())
                if found:
                    setting = {"network": network, "criterion": label(name), "over": over}
                    yield {**setting, **spread("correlation", found, ".3f")}


def times(rows: list[Row]) -> Iterator[data_files.Line]:
    """Processor time of scoring data, per plain forward and backward."""
    measured = [row for row in rows if row["protocol"] == "time"]
    for name in dict.fromkeys(row["criterion"] for row in measured):
        for network, mine in _by_network(measured):
            found = list(values(mine, "ratio", criterion=name).values())
            yield {"network": network, "criterion": label(name), **spread("ratio", found, ".2f")}


FILES: Mapping[str, tuple[tuple[str, ...], Callable[[list[Row]], Iterator[data_files.Line]]]] = {
    "": (("network", "protocol", "criterion", "ranking", "removed"), accuracies),
    "_margins": (("network", "protocol", "removed"), margins),
    "_leads": (("protocol", "criterion", "ranking", "removed"), leads),
    "_gains": (("choice", "removed"), gains),
    "_alone": (("network", "criterion", "over"), correlations),
    "_time": (("network", "criterion"), times),
}
"""What is added to the data file's name -> the columns that say what was measured, and the figures."""


def _by_network(rows: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    for network in networks(rows):
        yield network, [row for row in rows if row["trained"] == network]


def _means(by_network: list[dict[int, float]]) -> list[float]:
    """The mean over networks for each seed that all of them have."""
    seeds = set.intersection(*(set(found) for found in by_network)) if by_network else set()
    return [statistics.mean(found[seed] for found in by_network) for seed in sorted(seeds)]


def _paired(name: str, ours: Mapping[int, float], others: Mapping[int, float]) -> data_files.Line:
    return spread(name, [100 * (ours[seed] - others[seed]) for seed in ours if seed in others], "+.1f")


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.0f}"


def _mean(found: Mapping[int, float]) -> float:
    return statistics.mean(found.values()) if found else -1.0
