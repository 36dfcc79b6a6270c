"""What does `ranking="measured"` lose by the limit on the samples that it runs, and how many passes does it make?

    python examples/benchmarks/planning_measured.py --data examples/benchmarks/planning.csv

A network of 32 layers and 100 thousand parameters is trained on the digits for each seed. It has so many coupled groups
that the limit binds. It is pruned by group Fisher and the measured ranking, at once and with batch-norm statistics
taken anew, as `hfp.prune` does it and once more without the limit. Test accuracy is compared in pairs. The samples that
one pruning runs forward and backward are counted too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from unittest import mock

import torch
from criteria_study.cutting import accuracy
from criteria_study.networks import Batches, batches
from data_files import Line, put
from planning import row
from torch import Tensor, nn
from torch.nn import functional

import hfp
from hfp.data import Dataset, load_dataset
from hfp.models import create_model
from hfp.pruning import measuring

SHARES = (0.5,)
IMAGES = 1000
UNLIMITED = 10**9


def trained(seed: int, epochs: int) -> tuple[nn.Module, Batches, Batches]:
    """The network of a seed, the images to score with, and those to test with."""
    data = load_dataset("digits")
    torch.manual_seed(seed)
    model = create_model("resnet32", len(data.classes), data.shape[0], width=0.46)
    train(model, data, epochs)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    tested = torch.arange(len(data.test))
    return (
        model.eval(),
        batches(data, data.train.images, data.train.labels, order[:IMAGES], 100),
        batches(data, data.test.images, data.test.labels, tested, 500),
    )


def train(model: nn.Module, data: Dataset, epochs: int) -> None:
    """One cycle of the learning rate; digits are neither shifted nor mirrored."""
    steps = len(data.train) // 32
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.005, total_steps=epochs * steps)
    model.train()
    for _ in range(epochs):
        for part in torch.randperm(len(data.train)).split(32)[:steps]:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(data.normalise(data.train.images[part])), data.train.labels[part])
            loss.backward()
            optimizer.step()
            schedule.step()


def pruned(model: nn.Module, share: float, data: Batches, limit: int) -> nn.Module:
    """What is left by the measured ranking with a limit on the samples that all its losses run."""
    with mock.patch.object(measuring, "MOST_SAMPLES", limit):
        return hfp.prune(
            model, data[0][0][:2], hfp.Budget(macs=share), importance="group-fisher", ranking="measured", data=data,
            loss_fn=functional.cross_entropy, repair="batch-norm",
        ).model  # fmt: skip


class Counting(nn.Module):
    """A network that notes how many samples it runs forward and backward, and so does every copy of it."""

    run: ClassVar[list[int]] = []

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] to [batch, classes]."""
        output = self.network(x)
        if not x.is_meta:
            self.run.append(len(x))
            if output.requires_grad:
                output.register_hook(lambda _: self.run.append(len(x)))
        return output


def passes(model: nn.Module, data: Batches) -> float:
    """How often one pruning runs `IMAGES` images forward or backward, through the network or what is left of it."""
    Counting.run.clear()
    pruned(Counting(model), SHARES[0], data, measuring.MOST_SAMPLES)
    return sum(Counting.run) / IMAGES


def rows(seeds: int, epochs: int) -> Iterator[Line]:
    """The lines of the data file."""
    lost: dict[float, list[float]] = {share: [] for share in SHARES}
    reached: dict[float, list[float]] = {share: [] for share in SHARES}
    for seed in range(seeds):
        model, data, test = trained(seed, epochs)
        print(f"seed {seed}: {accuracy(model, test):.2%} before", flush=True)
        if seed == 0:
            count = sum(parameter.numel() for parameter in model.parameters()) / 1e3
            figure = f"one pruning by group Fisher and measured losses, network of {count:.0f} thousand parameters"
            yield row(figure, "passes of 1,000 images", [passes(model, data)], 20)
        for share in SHARES:
            limited, unlimited = (
                100 * accuracy(pruned(model, share, data, limit), test) for limit in (measuring.MOST_SAMPLES, UNLIMITED)
            )
            print(f"seed {seed}, {share:.0%} left: {limited:.1f} limited, {unlimited:.1f} not", flush=True)
            lost[share].append(unlimited - limited)
            reached[share].append(unlimited)
    for share in SHARES:
        figure = (
            f"accuracy lost by the limit on samples of measured losses, {share:.0%} of the multiply-accumulates left"
        )
        yield row(figure, "points", lost[share], round(statistics.stdev(reached[share]), 1))


def main() -> None:
    """Measure all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--data", type=Path, help="write the figures to this data file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for line in rows(given.seeds, given.epochs):
        print("{figure}: {median} {unit} ({lowest} to {highest}), target {target}".format(**line), flush=True)
        if given.data:
            put(given.data, ("figure",), [line])


if __name__ == "__main__":
    main()
