"""How fast is hfp beside what one does without it? Each row has its reference in the same run.

    python examples/benchmarks/speed.py engine --data examples/benchmarks/speed.csv
    python examples/benchmarks/speed.py flower --repeats 5 --data examples/benchmarks/speed.csv
    python examples/benchmarks/speed.py criteria --data examples/benchmarks/speed.csv
    python examples/benchmarks/speed.py bytes --data examples/benchmarks/speed.csv
    python examples/benchmarks/speed.py jobs --data examples/benchmarks/speed.csv
    python examples/benchmarks/speed.py compile --data examples/benchmarks/speed.csv

- engine: a round of the embedded engine over a bare PyTorch loop that trains the same submodels on the same batches, to
  the same weights; the loop neither makes the submodels nor aggregates them. Freed memory stays with the process.
- flower: a round of the embedded engine over the same round in Flower's simulation, which needs hfp[flower-sim].
- criteria: scoring two batches of 64 images over a plain forward and backward of them.
- bytes: what a client sends in a round over 4 bytes for every value that it keeps.
- jobs: a round with two jobs over one with one job. It is wall-clock time, so two cores must be idle.
- compile: a local step that torch.compile made over a plain one. It needs a C++ compiler.

Both sides of a ratio run one after the other in every repeat. All are processor time but those that name the clock, so
that other work on the machine disturbs little. `reconstruct.py` has the rows on recording, embedding, aggregating and
latency.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from criteria_study.timing import hessian_loop, plain
from figures import Figure, keep_freed_memory, seconds, shown
from flower import LONG, SHORT, deployment, embedded, measure
from torch import Tensor, nn
from torch.nn import functional

import hfp
from hfp.costs.macs import MacCounter
from hfp.costs.memory import PeakBytesCounter
from hfp.data import Dataset, Split, make_dataset
from hfp.federation.exchange import Plans
from hfp.federation.jobs.fleet import fleet_of
from hfp.federation.observer import Observer
from hfp.federation.rounds import Course
from hfp.federation.setup import Federation, set_up
from hfp.importance import create
from hfp.methods import ClientContext, ServerState, Update
from hfp.models import create_model
from hfp.training.local_step import Objective

CLIENTS = 10


def pictures(count: int) -> tuple[Tensor, Tensor]:
    """Random images of CIFAR's shape, uint8, and labels: what training costs does not depend on what they show."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10, (count,), generator=generator)


def federation(method: str, model: str, each: int, **settings: Any) -> Federation:
    """Return a federation of ten clients with so many such images each; its rounds are all alike and not tested."""
    data = make_dataset("pictures", Split(*pictures(CLIENTS * each)), Split(*pictures(100)), tuple("abcdefghij"))
    fixed = {"clients": CLIENTS, "rank": 2, "rounds": 1000, "evaluate": 1000, "head_start": 1.0, "batch_size": 32}
    fixed |= {"partition": "iid", "learning_rate": 0.01}
    return set_up(hfp.Experiment(method=method, model=model, dataset=data, **{**fixed, **settings}))


@dataclass(frozen=True)
class Trainee:
    """A client's data and settings, the submodel that it trains, and what it minimises."""

    local: ClientContext
    model: nn.Module
    objective: Objective


def bare_loop(data: Dataset, trainees: list[Trainee]) -> None:
    """Train every client's submodel as one would by hand."""
    mean, std = data.mean.view(-1, 1, 1), data.std.view(-1, 1, 1)
    for one in trainees:
        training, shard, model = one.local.training, one.local.data, one.model
        optimizer = torch.optim.SGD(
            model.parameters(), training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
        )
        model.train()
        for chosen in torch.randperm(len(shard.labels), generator=one.local.random).split(training.batch_size):
            loss = one.objective.loss(model, (shard.images[chosen] - mean) / std, shard.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


class Replies(Observer):
    """Keeps what the clients of the last round trained."""

    def __init__(self) -> None:
        self.trained: dict[int, dict[str, Tensor]] = {}

    def update_came(self, state: ServerState, update: Update) -> None:
        """Keep a reply's tensors."""
        self.trained[update.client.index] = dict(update.reply.tensors)


def trainees(setting: Federation, before: ServerState, plans: Plans) -> list[Trainee]:
    """What the clients of a round started from."""
    made = []
    for client in setting.context.clients:
        example, training = setting.context.example, setting.training_in(before.round)
        local = ClientContext(
            *(client, before.round, setting.model, setting.context.groups, setting.shards[client.index], training),
            *(MacCounter(example), PeakBytesCounter(example), setting.experiment.seed, setting.device),
        )
        task = setting.method.send(setting.context, before, client, plans[client.index][2])
        model = local.build(task)
        made.append(Trainee(local, model, setting.method.objective(local, task, model)))
    return made


def engine_ratio(course: Course, setting: Federation, replies: Replies) -> float:
    """The next round over a bare loop that trains the same submodels to the same weights."""
    before = course.state
    ours = seconds(course.advance)
    clients = trainees(setting, before, course.run_state.plans)
    theirs = seconds(lambda: bare_loop(setting.dataset, clients))
    for one in clients:
        trained = replies.trained[one.local.client.index]
        if not all(torch.equal(tensor, trained[name]) for name, tensor in one.model.state_dict().items()):
            raise SystemExit(f"the bare loop trained client {one.local.client.index} to other weights")
    return ours / theirs


def engine() -> Iterator[Figure]:
    """The embedded engine beside a bare loop."""
    keep_freed_memory()
    for method in ("ca-hfp", "heterofl", "fedavg"):
        for each in (100, 500, 1000):
            setting, replies = federation(method, "resnet20", each), Replies()
            course = Course(setting, observers=[replies])
            name = f"round of the embedded engine / bare loop ({method}, resnet20, {each} images a client)"
            yield Figure(name, "<= 1.05", partial(engine_ratio, course, setting, replies))


def flower() -> Iterator[Figure]:
    """The embedded engine beside Flower's simulation, in processor time of all processes of a run."""
    clients, images = 3, 300

    def per_round(short: dict[str, float], long: dict[str, float]) -> float:
        return (long["cpu"] - short["cpu"]) / (LONG - SHORT)

    with deployment(simulation=True) as local:
        settings = f"train-images={images} threads=1 wait=300.0"

        def ratio() -> float:
            ours = per_round(*(embedded(rounds, clients, {"train_images": images}) for rounds in (SHORT, LONG)))
            theirs = per_round(*(measure(local, rounds, clients, settings, True) for rounds in (SHORT, LONG)))
            return ours / theirs

        yield Figure("round of the embedded engine / in Flower's simulation (digits)", "<= 1", ratio)


def criteria() -> Iterator[Figure]:
    """Scoring beside a forward and backward, on CIFAR's ResNet-20."""
    torch.manual_seed(0)
    model = create_model("resnet20")
    images, labels = pictures(128)
    batches = [(part / 255.0, truth) for part, truth in zip(images.split(64), labels.split(64), strict=True)]

    def scored(name: str) -> None:
        create(name).accumulate(model, batches, functional.cross_entropy)

    def over(name: str) -> float:
        reference = seconds(lambda: plain(model, batches))
        return seconds(lambda: scored(name)) / reference

    yield Figure("group-fisher / forward and backward (resnet20)", "<= 1.3", lambda: over("group-fisher"))
    yield Figure("empirical-fisher / forward and backward (resnet20)", "<= 4", lambda: over("empirical-fisher"))
    yield Figure(
        "torch-pruning's Hessian loop / group-fisher (resnet20)",
        ">= 50",
        lambda: seconds(lambda: hessian_loop(model, batches[:1])) / (seconds(lambda: scored("group-fisher")) / 2),
    )


def payload() -> Iterator[Figure]:
    """Bytes of replies beside those of the values kept; they are counted, so one round is enough."""

    def ratio(method: str) -> float:
        setting = federation(method, "resnet20", each=10)
        course = Course(setting)
        record = course.advance().record
        groups = setting.context.groups
        kept = sum(groups.index_map(plan).kept_entries for _, _, plan in course.run_state.plans.values())
        return sum(client.bytes_up for client in record.clients) / (4 * kept)

    for method in ("ca-hfp", "fedavg", "heterofl"):
        name = f"bytes up / 4 bytes a kept value ({method}, resnet20)"
        yield Figure(name, "<= 1.01", partial(ratio, method), once=True)


def jobs() -> Iterator[Figure]:
    """Two jobs beside one, by the clock."""
    setting = federation("ca-hfp", "resnet20", each=100)
    with fleet_of(setting, 2) as fleet:
        two, one = Course(setting, fleet), Course(setting)

        def ratio() -> float:
            both = (seconds(lambda course=course: course.advance(), time.perf_counter) for course in (two, one))
            return next(both) / next(both)

        yield Figure("round with 2 jobs / with 1 (ca-hfp, resnet20, clock)", "<= 0.6", ratio)


class Stepping:
    """A model that takes one step after the other on one batch, as a client does, compiled or not."""

    def __init__(self, model: nn.Module, compiled: bool) -> None:
        self.model = copy.deepcopy(model).train()
        self._forward = torch.compile(self.model) if compiled else self.model
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        images, self._labels = pictures(32)
        self._inputs = images / 255.0

    def step(self) -> None:
        """Take one step."""
        loss = functional.cross_entropy(self._forward(self._inputs), self._labels)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def compiled() -> Iterator[Figure]:
    """A step that torch.compile made beside a plain one: what it costs to start, what it gains, and how it differs."""
    torch.manual_seed(0)
    model = create_model("resnet20")
    plain_one, compiled_one = Stepping(model, False), Stepping(model, True)
    clock = time.perf_counter
    plain_one.step()
    with torch._inductor.config.patch(force_disable_caches=True):
        start = seconds(compiled_one.step, clock)
    pairs = list(zip(plain_one.model.parameters(), compiled_one.model.parameters(), strict=True))
    other = sum(int((one != two).sum()) for one, two in pairs) / sum(one.numel() for one, _ in pairs)
    plain_time = statistics.median(seconds(plain_one.step, clock) for _ in range(9))
    yield Figure("first step compiled / a plain step (resnet20, clock)", "", lambda: start / plain_time, once=True)
    yield Figure("weights with other bits after it / all weights", "<= 0", lambda: other, once=True)

    def steps(one: Stepping) -> float:
        return seconds(lambda: [one.step() for _ in range(10)])

    name = "ten later steps compiled / plain (resnet20)"
    yield Figure(name, "<= 1", lambda: steps(compiled_one) / steps(plain_one))


ROWS = {"engine": engine, "flower": flower, "criteria": criteria, "bytes": payload, "jobs": jobs, "compile": compiled}


def main() -> None:
    """Measure the figures of some rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--data", type=Path, help="write the figures to this data file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for row in given.rows:
        for figure in ROWS[row]():
            shown(figure, given.repeats, given.data)


if __name__ == "__main__":
    main()
