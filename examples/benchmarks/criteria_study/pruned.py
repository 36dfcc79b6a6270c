"""Accuracy after pruning to a share of the multiply-accumulates: at once and in steps, repaired and fine-tuned."""

from __future__ import annotations

from collections.abc import Iterator

from criteria_study.cutting import Cutter, accuracy, finetuned
from criteria_study.entries import ENTRIES, Entry, criterion_of
from criteria_study.log import Log
from criteria_study.networks import Trained
from hfp.reconstruct import IndexMap

RATIOS = (0.2, 0.3, 0.5, 0.7)
HARD = (0.5, 0.7)
STEPS = (0.07, 0.14, 0.2, 0.25, 0.3, 0.37, 0.43, 0.5, 0.6, 0.7)
REPAIRS = {"none": (), "batch-norm": ("batch-norm",), "closed form": ("least-squares", "batch-norm")}


def run_once(network: Trained, log: Log) -> None:
    """Every ratio at once: without repair, with batch-norm statistics taken anew, and with the closed-form repair.

    The last one only where half and more is removed: it costs most, and before that hardly anything is lost.
    """
    cutter = Cutter(network.model, network)
    for name, entry in ENTRIES.items():
        for ranking, ratio, place in _missing(cutter, name, entry, entry.rankings, "once", log):
            repairs = REPAIRS if ratio in HARD else {key: REPAIRS[key] for key in ("none", "batch-norm")}
            found = {key: accuracy(cutter.repaired(place, kinds), network.test) for key, kinds in repairs.items()}
            log.add(protocol="once", criterion=name, ranking=ranking, ratio=ratio, **found)


def run_tuned(network: Trained, log: Log) -> None:
    """Half and more at once, then one epoch over the fine-tuning images."""
    cutter = Cutter(network.model, network)
    for name, entry in ENTRIES.items():
        for ranking, ratio, place in _missing(cutter, name, entry, entry.tuned, "tuned", log, HARD):
            model = finetuned(cutter.repaired(place), network.tune)
            log.add(protocol="tuned", criterion=name, ranking=ranking, ratio=ratio, epoch=accuracy(model, network.test))


def run_steps(network: Trained, log: Log) -> None:
    """Ten steps, each with new scores and then new batch-norm statistics; the accuracies on the way."""
    for name, entry in ENTRIES.items():
        for ranking in entry.stepped:
            if log.wants(protocol="steps", criterion=name, ranking=ranking):
                for ratio, found in list(_stepwise(network, entry, ranking)):
                    log.add(protocol="steps", criterion=name, ranking=ranking, ratio=ratio, **{"batch-norm": found})


def _missing(
    cutter: Cutter,
    name: str,
    entry: Entry,
    rankings: tuple[str, ...],
    protocol: str,
    log: Log,
    ratios: tuple[float, ...] = RATIOS,
) -> Iterator[tuple[str, float, IndexMap]]:
    """(ranking, ratio, the cut) of every result of a criterion that there isn't yet."""
    criterion = None
    for ranking in rankings:
        todo = [r for r in ratios if log.wants(protocol=protocol, criterion=name, ranking=ranking, ratio=r)]
        if todo:
            criterion = criterion or criterion_of(entry, cutter.model, cutter.data)
            order = cutter.order(criterion, ranking)
            yield from ((ranking, ratio, cutter.cut(order, 1 - ratio)) for ratio in todo)


def _stepwise(network: Trained, entry: Entry, ranking: str) -> Iterator[tuple[float, float]]:
    """(share removed, accuracy) along the steps."""
    model, left = network.model, 1.0
    for ratio in STEPS:
        cutter = Cutter(model, network)
        order = cutter.order(criterion_of(entry, model, network.score), ranking)
        model, left = cutter.repaired(cutter.cut(order, (1 - ratio) / left), REPAIRS["batch-norm"]), 1 - ratio
        if ratio in RATIOS:
            yield ratio, accuracy(model, network.test)
