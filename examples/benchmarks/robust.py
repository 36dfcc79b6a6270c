"""How much of its accuracy does a run keep when some clients lie, under each robust rule?

    python examples/benchmarks/robust.py --data examples/benchmarks/robust.csv

Digits, ten clients, ResNet-8. The first LIARS clients train honestly and then send something else. Rows that the data
file has already are not run again, so that the command can be stopped and started again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import data_files
import torch
from torch import Tensor

from hfp import Experiment
from hfp.federation.fleet import Fleet, InProcess, TaskResult
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up
from hfp.methods import Client, Reply, State, Task
from hfp.reconstruct import TensorMap
from hfp.seeds import generator

SETTING = ("method", "rank", "rule", "attack", "liars", "seed")
RULES = ("none", "norm-clip", "trimmed-mean:2", "trimmed-mean:3", "median", "norm-clip,trimmed-mean:3")
LITTLE = 1.0  # standard deviations that "little is enough" moves a value by (Baruch et al., arXiv 1902.06156)

Attack = Callable[[Sequence[TaskResult], int, torch.Generator], State]


def scaled(times: float) -> Attack:
    """Send `times` the honest change."""
    return lambda results, liar, random: {
        name: before + times * (after - before) for name, (before, after) in changes(results[liar]).items()
    }


def noise(results: Sequence[TaskResult], liar: int, random: torch.Generator) -> State:
    """Send noise of ten times the honest change's length."""
    return {
        name: before + 10 * rms(after - before) * torch.randn(before.shape, generator=random)
        for name, (before, after) in changes(results[liar]).items()
    }


def drift(results: Sequence[TaskResult], liar: int, random: torch.Generator) -> State:
    """Send the same step in every round, five times as long as the honest change."""
    return {name: before + 5 * rms(after - before) for name, (before, after) in changes(results[liar]).items()}


def little(results: Sequence[TaskResult], liar: int, random: torch.Generator) -> State:
    """Send what lies a standard deviation below the mean of all that hold an entry, which looks honest."""
    return {name: below_mean(name, results, liar) for name in changes(results[liar])}


ATTACKS: dict[str, Attack | None] = {
    "none": None,
    "sign-flip": scaled(-1.0),
    "x10": scaled(10.0),
    "x100": scaled(100.0),
    "flip-x10": scaled(-10.0),
    "random": noise,
    "drift": drift,
    "little": little,
}


class Lying:
    """A fleet some of whose clients lie; all others and everything else are the fleet's own."""

    def __init__(self, fleet: Fleet, attack: Attack, liars: int, seed: int) -> None:
        self._fleet, self._attack, self._liars, self._seed = fleet, attack, liars, seed

    @property
    def home(self) -> torch.device:
        """The fleet's device."""
        return self._fleet.home

    def reachable(self, round: int, clients: Sequence[Client]) -> Sequence[Client]:
        """Those whom the fleet reaches."""
        return self._fleet.reachable(round, clients)

    def train(self, round: int, clients: Sequence[Client], write: Callable[[Client], Task]) -> Iterator[TaskResult]:
        """Train all, then replace what the liars send."""
        results = list(self._fleet.train(round, clients, write))
        for place, result in enumerate(results):
            if result.client.index >= self._liars or result.reply is None:
                yield result
                continue
            random = generator(self._seed, "attack", round, result.client.index)
            sent = self._attack(results, place, random)
            reply: Reply = dataclasses.replace(result.reply, tensors={**result.reply.tensors, **sent})
            yield dataclasses.replace(result, reply=reply)

    def statistics(self, round: int, clients: Sequence[Client], weights: State) -> Iterator[tuple[Client, State]]:
        """The fleet's statistics."""
        return self._fleet.statistics(round, clients, weights)


def changes(result: TaskResult) -> dict[str, tuple[Tensor, Tensor]]:
    """Pair what was sent and what came back, but for batch-norm statistics: a variance below zero would be refused."""
    assert result.reply is not None
    return {
        name: (before, result.reply.tensors[name])
        for name, before in result.task.tensors.items()
        if before.is_floating_point() and name in result.reply.tensors and "running_" not in name
    }


def rms(change: Tensor) -> float:
    """The root mean square of a tensor."""
    return float(change.square().mean().sqrt())


def below_mean(name: str, results: Sequence[TaskResult], liar: int) -> Tensor:
    """The mean over the holders less `LITTLE` standard deviations, of the entries that the liar holds."""
    places: list[TensorMap] = [result.task.index_map.tensors[name] for result in results]
    stacked = torch.full((len(results), *places[0].shape), torch.nan)
    for row, place, result in zip(stacked, places, results, strict=True):
        assert result.reply is not None
        place.write(result.reply.tensors[name], row)
    held = (~stacked.isnan()).sum(0)
    mean = stacked.nanmean(0)
    deviation = ((stacked - mean).square().nansum(0) / held.clamp(min=1)).sqrt()
    return places[liar].restrict(mean - LITTLE * deviation)


def accuracy(method: str, rank: int, rule: str, attack: str, liars: int, seed: int, rounds: int) -> tuple[float, float]:
    """Run once: the accuracy in percent at the end, and the share of the model that the rule could not defend."""
    experiment = Experiment(
        method=method, rank=rank, rounds=rounds, seed=seed, evaluate=rounds, head_start=3.0,
        robust=None if rule == "none" else rule,
    )  # fmt: skip
    federation = set_up(experiment)
    fleet: Fleet = InProcess(federation)
    lie = ATTACKS[attack]
    if lie is not None:
        fleet = Lying(fleet, lie, liars, seed)
    run = Course(federation, fleet).run()
    return run.accuracy, float(run.history[-1].figures.get("undefended", 0.0))


def main() -> None:
    """Run every combination that the data file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the data file")
    parser.add_argument("--methods", default="ca-hfp,fedavg")
    parser.add_argument("--ranks", default="0,1,2,3")
    parser.add_argument("--liars", default="2,3")
    parser.add_argument("--rules", nargs="*", default=list(RULES))
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = {tuple(line[name] for name in SETTING) for line in data_files.read(given.data)}
    for seed, method, rank, attack, rule, liars in itertools.product(
        range(given.seeds), given.methods.split(","), given.ranks.split(","), given.attacks, given.rules,
        given.liars.split(","),
    ):  # fmt: skip
        if method == "fedavg" and rank != "0":
            continue  # it makes no difference to full models
        number = "0" if attack == "none" else liars
        setting = dict(zip(SETTING, (method, rank, rule, attack, number, str(seed)), strict=True))
        if tuple(setting.values()) in known:
            continue
        known.add(tuple(setting.values()))
        try:
            reached, undefended = accuracy(method, int(rank), rule, attack, int(number), seed, given.rounds)
            line = {**setting, "accuracy": f"{reached:.1f}", "undefended": f"{100 * undefended:.0f}"}
        except hfp_error() as error:
            line = {**setting, "accuracy": "", "undefended": "", "ended": str(error)[:80]}
        print(line, flush=True)
        data_files.put(given.data, SETTING, [line])


def hfp_error() -> type[Exception]:
    """The error with which a run ends that can't go on."""
    from hfp.errors import InputError

    return InputError


if __name__ == "__main__":
    main()
