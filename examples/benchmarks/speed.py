"""How fast is hfp beside what one does without it? Each row has its reference in the same run.

    python examples/benchmarks/speed.py engine --data examples/benchmarks/speed.csv
    python examples/benchmarks/speed.py flower --repeats 5 --data examples/benchmarks/speed.csv
    python examples/benchmarks/speed.py criteria --data examples/benchmarks/speed.csv
    python examples/benchmarks/speed.py bytes --data examples/benchmarks/speed.csv
    python examples/benchmarks/speed.py jobs --data examples/benchmarks/speed.csv

- engine: a round of the embedded engine over a bare PyTorch loop that trains the same submodels on the same images.
- flower: a round of the embedded engine over the same round in Flower's simulation, which needs hfp[flower-sim].
- criteria: scoring two batches of 64 images over a plain forward and backward of them.
- bytes: what a client sends in a round over 4 bytes for every value that it keeps.
- jobs: a round with two jobs over one with one job. It is wall-clock time, so two cores must be idle.

Both sides of a ratio run one after the other in every repeat. All but the last are processor time, so that other work
on the machine disturbs little. `reconstruct.py` has the rows on recording, embedding, aggregating and latency.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from criteria_study.timing import hessian_loop, plain
from figures import Figure, seconds, shown
from flower import LONG, SHORT, deployment, embedded, measure
from torch import Tensor, nn
from torch.nn import functional

import hfp
from hfp.data import Split, make_dataset
from hfp.federation.jobs.fleet import fleet_of
from hfp.federation.rounds import Course
from hfp.federation.setup import Federation, set_up
from hfp.importance import create
from hfp.methods import Client
from hfp.models import create_model
from hfp.reconstruct import compact_model

IMAGES, CLIENTS = 1000, 10


def pictures(count: int) -> tuple[Tensor, Tensor]:
    """Random images of CIFAR's shape, uint8, and labels: what training costs does not depend on what they show."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10, (count,), generator=generator)


def federation(method: str, model: str, images: int = IMAGES, **settings: Any) -> Federation:
    """Return a federation on such images whose rounds are all alike and are not tested."""
    data = make_dataset("pictures", Split(*pictures(images)), Split(*pictures(100)), tuple("abcdefghij"))
    fixed = {"clients": CLIENTS, "rank": 2, "rounds": 1000, "evaluate": 1000, "head_start": 1.0, "batch_size": 32}
    return set_up(hfp.Experiment(method=method, model=model, dataset=data, **{**fixed, **settings}))


def bare_loop(setting: Federation, clients: list[tuple[Client, nn.Module]]) -> None:
    """Train every client's model as one would by hand."""
    training, data = setting.training, setting.dataset
    mean, std = data.mean.view(-1, 1, 1), data.std.view(-1, 1, 1)
    for client, model in clients:
        shard = setting.shards[client.index]
        optimizer = torch.optim.SGD(model.parameters(), lr=training.learning_rate, momentum=training.momentum)
        model.train()
        for chosen in torch.randperm(len(shard.labels)).split(training.batch_size):
            if len(chosen) > 1:
                loss = functional.cross_entropy(model((shard.images[chosen] - mean) / std), shard.labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def engine_ratio(course: Course, setting: Federation) -> float:
    """The next round over the bare loop on models of the same plans."""
    ours = seconds(lambda: course.advance())
    plans = course.run_state.plans
    models = []
    for client in setting.context.clients:
        index_map = setting.context.groups.index_map(plans[client.index][2])
        models.append((client, compact_model(setting.model, index_map, index_map.restrict(course.state.weights))))
    return ours / seconds(lambda: bare_loop(setting, models))


def engine() -> Iterator[Figure]:
    """The embedded engine beside a bare loop."""
    for method in ("ca-hfp", "heterofl"):
        setting = federation(method, "resnet20", learning_rate=0.01)
        course = Course(setting)
        name = f"round of the embedded engine / bare loop ({method}, resnet20)"
        yield Figure(name, "<= 1.05", lambda course=course, setting=setting: engine_ratio(course, setting))


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
        setting = federation(method, "resnet20", images=100)
        course = Course(setting)
        record = course.advance().record
        groups = setting.context.groups
        kept = sum(groups.index_map(plan).kept_entries for _, _, plan in course.run_state.plans.values())
        return sum(client.bytes_up for client in record.clients) / (4 * kept)

    for method in ("ca-hfp", "fedavg", "heterofl"):
        yield Figure(f"bytes up / 4 bytes a kept value ({method}, resnet20)", "<= 1.01", lambda m=method: ratio(m))


def jobs() -> Iterator[Figure]:
    """Two jobs beside one, by the clock."""
    setting = federation("ca-hfp", "resnet20", learning_rate=0.01)
    with fleet_of(setting, 2) as fleet:
        two, one = Course(setting, fleet), Course(setting)

        def ratio() -> float:
            both = (seconds(lambda course=course: course.advance(), time.perf_counter) for course in (two, one))
            return next(both) / next(both)

        yield Figure("round with 2 jobs / with 1 (ca-hfp, resnet20, clock)", "<= 0.6", ratio)


ROWS = {"engine": engine, "flower": flower, "criteria": criteria, "bytes": payload, "jobs": jobs}


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
            shown(figure, 1 if row == "bytes" else given.repeats, given.data)


if __name__ == "__main__":
    main()
