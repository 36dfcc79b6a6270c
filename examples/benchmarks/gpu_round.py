"""Seconds of a federated round at the paper's size, with and without CUDA graphs and several clients at once.

python examples/benchmarks/gpu_round.py --data gpu_round.jsonl
python examples/benchmarks/gpu_round.py --data gpu_round.jsonl --data-root FOLDER   # an image folder

The three ways of one row take turns, round by round, in one process: local steps one by one (the reference), replayed
as CUDA graphs, and replayed with several clients in flight. Before, a section checks that all end at the same weights
to the last bit. Without --data-root the images are made up. One line of JSON is written for each figure.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import json
import pstats
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from hfp import Experiment
from hfp.costs.machine import device_name
from hfp.data import make_dataset, register_dataset
from hfp.data.dataset import Dataset, Split
from hfp.data.request import DataRequest
from hfp.federation.rounds import Course
from hfp.federation.setup import Federation, set_up

MADE_UP = "made-up-cifar"
TEST_IMAGES = 10_000
ROWS = (("vgg16", "ca-hfp"), ("vgg16", "fedavg"), ("resnet32", "ca-hfp"), ("resnet32", "fedavg"))
PRECISIONS: Mapping[str, Mapping[str, bool]] = MappingProxyType(
    {"bfloat16": {"amp": True, "channels_last": True}, "float32": {"amp": False, "channels_last": False}}
)
CHECKED_ROUNDS = 3


def main() -> None:
    """Run all sections; one that fails is printed and does not stop the others."""
    arguments = _arguments()
    register_dataset(MADE_UP, made_up)
    report = Report(arguments.data, arguments.device, arguments.commit or commit())
    for model, method in ROWS[: arguments.rows]:
        model = arguments.model or model
        report.section(f"{model} {method}: seconds", lambda m=model, k=method: timed(arguments, report, m, k))
        report.section(f"{model} {method}: same weights", lambda m=model, k=method: checked(arguments, report, m, k))


class Report:
    """Prints figures and adds each to the data file as soon as it is known."""

    def __init__(self, file: Path, device: str, commit: str) -> None:
        self._file = file
        self._common = {"device": device_name(device), "torch": torch.__version__, "commit": commit}

    def add(self, what: str, **figures: Any) -> None:
        """Write one line."""
        line = json.dumps({"what": what, **figures, **self._common})
        print(line, flush=True)
        with self._file.open("a") as stream:
            stream.write(line + "\n")

    def section(self, name: str, run: Callable[[], None]) -> None:
        """Run a part of the benchmark, whatever becomes of it."""
        begun = time.perf_counter()
        try:
            run()
        except Exception:
            traceback.print_exc()
            self.add(name, failed=traceback.format_exc(limit=-1).strip().splitlines()[-1])
        print(f"# {name} took {time.perf_counter() - begun:.1f} s", flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def ways(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The three ways to run a round; the first is the reference."""
    return {
        "one by one": {"cuda_graphs": False, "clients_in_flight": 1},
        "graphs": {"cuda_graphs": True, "clients_in_flight": 1},
        f"graphs, {arguments.in_flight} in flight": {"clients_in_flight": arguments.in_flight},
    }


def timed(arguments: argparse.Namespace, report: Report, model: str, method: str) -> None:
    """Median seconds of a round without a test, and of a test with batch-norm statistics estimated anew."""
    base = experiment(arguments, model, method, **PRECISIONS["bfloat16"])
    federation = set_up(base)
    courses = {
        way: Course(dataclasses.replace(federation, experiment=dataclasses.replace(base, **how)))
        for way, how in ways(arguments).items()
    }
    seconds = interleaved({way: course.advance for way, course in courses.items()}, arguments)
    reference = statistics.median(next(iter(seconds.values())))
    for way, found in seconds.items():
        median = statistics.median(found)
        report.add(
            f"round, {model}, {method}, bfloat16, {way}",
            seconds=round(median, 4),
            ratio=round(median / reference, 4),
            rounds=len(found),
            fastest=round(min(found), 4),
        )
    course = courses["graphs"]
    tests = [_seconds(lambda: course._evaluator.score(course._evaluator.refresh(course.state))) for _ in range(4)][1:]
    report.add(f"test and batch-norm statistics, {model}, bfloat16", seconds=round(statistics.median(tests), 4))
    if arguments.profile:
        profiled(course, arguments.data.with_name(f"profile-{model}-{method}.txt"))


def interleaved(rounds: Mapping[str, Callable[[], Any]], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of the rounds of each way, after two that warm up; fewer when the time is up, but at least one."""
    seconds: dict[str, list[float]] = {way: [] for way in rounds}
    begun = time.perf_counter()
    for turn in range(arguments.rounds + 2):
        for way, run in rounds.items():
            taken = _seconds(run)
            if turn >= 2:
                seconds[way].append(taken)
        if turn >= 2 and time.perf_counter() - begun > arguments.seconds:
            break
    return seconds


def checked(arguments: argparse.Namespace, report: Report, model: str, method: str) -> None:
    """Whether all ways end at the same weights, to the last bit, after three rounds with a test, in both precisions."""
    base = experiment(arguments, model, method, train_images=min(arguments.images, 10_000), evaluate=1)
    federation = set_up(base)
    for precision, how_precise in PRECISIONS.items():
        same = dataclasses.replace(federation, training=dataclasses.replace(federation.training, **how_precise))
        found = {
            way: three_rounds(dataclasses.replace(same, experiment=dataclasses.replace(base, **how_precise, **how)))
            for way, how in ways(arguments).items()
        }
        (_, (states, losses)), *others = found.items()
        for way, (other_states, other_losses) in others:
            differing = [
                f"{name} in round {number}"
                for number, (one, other) in enumerate(zip(states, other_states, strict=True), 1)
                for name, tensor in one.items()
                if not torch.equal(tensor, other[name])
            ]
            report.add(
                f"same weights, {model}, {method}, {precision}, {way}",
                same=not differing,
                same_losses=losses == other_losses,
                first=differing[:3],
            )


def three_rounds(federation: Federation) -> tuple[list[Mapping[str, torch.Tensor]], list[float]]:
    """The global weights after each of the first rounds, and the clients' losses in all of them."""
    course = Course(federation)
    outcomes = [course.advance() for _ in range(CHECKED_ROUNDS)]
    losses = [client.loss for outcome in outcomes for client in outcome.record.clients]
    return [outcome.state.weights for outcome in outcomes], losses


def profiled(course: Course, file: Path) -> None:
    """Write where the processor's time goes in one more round."""
    profile = cProfile.Profile()
    profile.enable()
    course.advance()
    _settle()
    profile.disable()
    with file.open("w") as stream:
        for order in ("cumtime", "tottime"):
            pstats.Stats(profile, stream=stream).sort_stats(order).print_stats(45)
    print(f"# {file}", flush=True)


def experiment(arguments: argparse.Namespace, model: str, method: str, **changes: Any) -> Experiment:
    """The paper's protocol; rounds without a test unless asked for."""
    data: dict[str, Any] = {"dataset": MADE_UP}
    if arguments.data_root:
        data = {"dataset": "imagefolder", "data_root": arguments.data_root, "image_size": 32}
    values = {
        **data,
        **{"model": model, "method": method, "clients": arguments.clients, "ratio": 0.5},
        **{"alpha": 1.0, "rounds": 1_000, "epochs": 1, "head_start": 1.0, "batch_size": arguments.batch},
        **{"learning_rate": 0.1, "momentum": 0.9, "augment": True, "evaluate": 1_000, "device": arguments.device},
        **{"train_images": arguments.images},
    }
    return Experiment(**{**values, **changes})


def made_up(request: DataRequest) -> Dataset:
    """Images of CIFAR-10's shape that can be told apart: a pattern for each class, under noise."""
    return _made_up(request.limit or 50_000)


@lru_cache(maxsize=2)
def _made_up(images: int) -> Dataset:
    random = torch.Generator().manual_seed(0)
    patterns = torch.randint(64, 192, (10, 3, 32, 32), generator=random, dtype=torch.int16)

    def split(images: int) -> Split:
        labels = torch.randint(10, (images,), generator=random)
        noise = torch.randint(-60, 60, (images, 3, 32, 32), generator=random, dtype=torch.int16)
        return Split(noise.add_(patterns[labels]).to(torch.uint8), labels)

    train = split(images)
    return make_dataset(MADE_UP, train, split(min(TEST_IMAGES, images)), tuple(map(str, range(10))))


def commit() -> str:
    """The commit that is checked out; unknown outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:
        return "unknown"


def _seconds(run: Callable[[], Any]) -> float:
    _settle()
    begun = time.perf_counter()
    run()
    _settle()
    return time.perf_counter() - begun


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=Path("gpu_round.jsonl"), help="lines of JSON are added to this file")
    add("--data-root", help="folder of images to train on; made-up images by default")
    add("--device", default="cuda", help="device to train on")
    add("--images", type=int, default=50_000, help="training images")
    add("--clients", type=int, default=10, help="clients that train in each round")
    add("--batch", type=int, default=128, help="images per local step")
    add("--model", help="train this network in all rows; by default VGG16 and ResNet-32")
    add("--rounds", type=int, default=5, help="timed rounds of each way")
    add("--seconds", type=float, default=60.0, help="no further turn begins when a row has taken so long")
    add("--rows", type=int, default=len(ROWS), help="rows to measure, from the first on")
    add("--in-flight", type=int, default=4, help="clients in flight of the third way")
    add("--profile", action="store_true", help="also write where the processor's time goes")
    add("--commit", help="commit that is measured, where the files are outside a repository")
    return parser.parse_args()


if __name__ == "__main__":
    main()
