"""Accuracy after pruning to a share of the multiply-accumulates: at once and in steps, repaired and trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from criteria_study.cutting import Cutter, accuracy, finetuned
from criteria_study.entries import ENTRIES, Entry, scores_for
from criteria_study.log import Log, Row
from criteria_study.networks import Trained
from criteria_study.training import train
from hfp.reconstruct import IndexMap

RATIOS = (0.2, 0.3, 0.5, 0.7)
STEPS = (0.07, 0.14, 0.2, 0.25, 0.3, 0.37, 0.43, 0.5, 0.6, 0.7)
REPAIRS = {"none": (), "batch-norm": ("batch-norm",), "closed form": ("least-squares", "batch-norm")}


@dataclass(frozen=True)
class Choice:
    """What of the protocols to run. repairs: of `REPAIRS`, for pruning at once."""

    criteria: tuple[str, ...] = tuple(ENTRIES)
    ratios: tuple[float, ...] = RATIOS
    repairs: tuple[str, ...] = tuple(REPAIRS)


def run_once(network: Trained, log: Log, choice: Choice) -> None:
    """Every ratio at once, with each repair."""
    cutter = Cutter(network.model, network)
    for name in choice.criteria:
        for ranking in ENTRIES[name].rankings:
            for line, place in _missing(cutter, name, ranking, "once", choice.repairs, choice.ratios, log):
                found = accuracy(cutter.repaired(place, REPAIRS[line["repair"]]), network.test)
                log.add(**line, accuracy=found)


def run_tuned(network: Trained, log: Log, choice: Choice) -> None:
    """Every ratio at once, then one epoch over the fine-tuning images."""
    cutter = Cutter(network.model, network)
    for name in choice.criteria:
        for ranking in ENTRIES[name].tuned:
            for line, place in _missing(cutter, name, ranking, "tuned", ("epoch",), choice.ratios, log):
                log.add(**line, accuracy=accuracy(finetuned(cutter.repaired(place), network.tune), network.test))


def run_retrained(network: Trained, log: Log, choice: Choice) -> None:
    """Every ratio at once, then some epochs as in training, at a lower learning rate."""
    cutter = Cutter(network.model, network)
    for name in choice.criteria:
        for ranking in ENTRIES[name].tuned:
            for line, place in _missing(cutter, name, ranking, "retrained", ("none",), choice.ratios, log):
                compact = cutter.repaired(place)
                train(compact, network.whole, network.seed, network.retraining, f"{name}, {ranking}, {line['ratio']}")
                log.add(**line, accuracy=accuracy(compact, network.test))


def run_steps(network: Trained, log: Log, choice: Choice) -> None:
    """Ten steps, each with new scores and then new batch-norm statistics; the accuracies on the way."""
    for name in choice.criteria:
        for ranking in ENTRIES[name].stepped:
            line = {"protocol": "steps", "criterion": name, "ranking": ranking, "repair": "batch-norm"}
            if log.wants(**line):
                for ratio, found in list(_stepwise(network, ENTRIES[name], ranking)):
                    log.add(**line, ratio=ratio, accuracy=found)


def _missing(
    cutter: Cutter, name: str, ranking: str, protocol: str, repairs: Iterable[str], ratios: Iterable[float], log: Log
) -> Iterator[tuple[Row, IndexMap]]:
    """(what a result is of, the cut) for every result of a criterion and ranking that there isn't yet."""
    common = {"protocol": protocol, "criterion": name, "ranking": ranking}
    lines = [{**common, "ratio": ratio, "repair": repair} for ratio in ratios for repair in repairs]
    todo = [line for line in lines if log.wants(**line)]
    if todo:
        order = cutter.order(scores_for(ENTRIES[name], ranking, cutter.model, cutter.data), ranking)
        places = {ratio: cutter.cut(order, 1 - ratio) for ratio in {line["ratio"] for line in todo}}
        yield from ((line, places[line["ratio"]]) for line in todo)


def _stepwise(network: Trained, entry: Entry, ranking: str) -> Iterator[tuple[float, float]]:
    """(share removed, accuracy) along the steps."""
    model, left = network.model, 1.0
    for ratio in STEPS:
        cutter = Cutter(model, network)
        order = cutter.order(scores_for(entry, ranking, model, network.score), ranking)
        model, left = cutter.repaired(cutter.cut(order, (1 - ratio) / left), REPAIRS["batch-norm"]), 1 - ratio
        if ratio in RATIOS:
            yield ratio, accuracy(model, network.test)
