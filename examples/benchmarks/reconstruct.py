"""How fast are recording, restricting, embedding, aggregating and compact models? Ratios to what one does without them.

Prints one line per figure: median ratio, spread (lowest to highest), and the target; with --data they are written to
the page's data file. Both sides of a ratio are timed one after the other in every repeat, as processor time of one
thread, so that other work on the machine disturbs little.

    python examples/benchmarks/reconstruct.py --repeats 7 --data examples/benchmarks/reconstruct.csv
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import timm
import torch
import torch_pruning as tp
from figures import Figure, seconds, shown
from torch import Tensor, nn

import hfp
from hfp.reconstruct import Aggregator, Coupling, IndexMap, record

State = dict[str, Tensor]


def pruned_by_torch_pruning(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """torch-pruning's own build and step."""

    def work() -> None:
        pruner = tp.pruner.BasePruner(
            model, x, tp.importance.MagnitudeImportance(), pruning_ratio=0.5, ignored_layers=[model.fc]
        )
        pruner.step()

    return work


def recorded(model: nn.Module, x: Tensor, full: State) -> Callable[[], None]:
    """The same recorded, then restricted and embedded."""

    def work() -> None:
        with record(model, x) as recording:
            pruned_by_torch_pruning(model, x)()
        recording.index_map.embed(recording.index_map.restrict(full), into=full)

    return work


def record_ratio(parent: nn.Module, x: Tensor, full: State) -> float:
    """Build, record, step, restrict and embed over build and step."""
    ours, theirs = copy.deepcopy(parent), copy.deepcopy(parent)
    return seconds(recorded(ours, x, full)) / seconds(pruned_by_torch_pruning(theirs, x))


def embed_ratio(index_map: IndexMap, sub: State, full: State) -> float:
    """Embed over a clone of the state."""
    embed = seconds(lambda: index_map.embed(sub, into=full))
    return embed / seconds(lambda: {name: tensor.clone() for name, tensor in full.items()})


def plain_mean(states: list[State]) -> State:
    """FedAvg's mean of full models, equal weights, one at a time."""
    total = {name: tensor.clone() for name, tensor in states[0].items()}
    for state in states[1:]:
        for name, tensor in state.items():
            total[name] += tensor
    return {name: tensor / len(states) for name, tensor in total.items()}


def aggregate(full: State, clients: list[tuple[State, IndexMap]], rule: str) -> State:
    """The streaming aggregation of compact models."""
    aggregator = Aggregator(full, rule)
    for sub, index_map in clients:
        aggregator.add(sub, index_map, weight=1.0)
    return aggregator.finish()


def random_map(groups: Coupling, seed: int, share: float = 0.5) -> IndexMap:
    """Keep this share of every group's channels, at random."""
    generator = torch.Generator().manual_seed(seed)
    kept = {
        name: torch.randperm(size, generator=generator)[: int(share * size)].sort().values
        for name, size in groups.sizes.items()
    }
    return groups.index_map(groups.plan(kept))


def speed_up(name: str, size: int) -> Callable[[], float]:
    """A full model's forward pass over that of its compact one: batch 64, channels in eights, a quarter of the MACs."""
    full = timm.create_model(name).eval()
    x = torch.randn(64, 3, size, size)
    compact = hfp.prune(full, x[:2], hfp.Budget(macs=0.25), round_to=8).model.eval()

    def ratio() -> float:
        with torch.no_grad():
            return seconds(lambda: full(x)) / seconds(lambda: compact(x))

    return ratio


def compact_models() -> Iterator[Figure]:
    """Latency of compact models."""
    for name, size in (("resnet18", 112), ("resnet50", 112)):
        yield Figure(f"full / compact forward pass ({name}, {size} pixels)", ">= 2.2", speed_up(name, size))


def recording() -> Iterator[Figure]:
    """Recording a pruning of resnet50, and putting a compact state back."""
    parent, x = timm.create_model("resnet50"), torch.randn(2, 3, 224, 224)
    full = parent.state_dict()
    both = "record + restrict + embed / build + step (resnet50)"
    yield Figure(both, "<= 2", lambda: record_ratio(parent, x, full))
    index_map = random_map(Coupling.trace(parent, x, ignored_layers=["fc"]), seed=0)
    sub = index_map.restrict(full)
    yield Figure("embed / clone (resnet50 at 50 %)", "<= 3", lambda: embed_ratio(index_map, sub, full))


def resnet18_clients(share: float = 0.5) -> tuple[State, list[tuple[State, IndexMap]]]:
    """The full state of resnet18, and ten clients' states and maps, each of this share of the channels."""
    parent = timm.create_model("resnet18")
    full = parent.state_dict()
    groups = Coupling.trace(parent, torch.randn(2, 3, 64, 64), ignored_layers=["fc"])
    maps = [random_map(groups, seed, share) for seed in range(10)]
    return full, [(index_map.restrict(full), index_map) for index_map in maps]


def aggregating() -> Iterator[Figure]:
    """Ten clients' halves of resnet18."""
    full, clients = resnet18_clients()
    states = [copy.deepcopy(full) for _ in range(10)]
    for rule in ("fill", "holders"):
        yield Figure(
            f"aggregate 10 x resnet18 at 50 % ({rule}) / mean of 10 full",
            "<= 2",
            lambda rule=rule: seconds(lambda: aggregate(full, clients, rule)) / seconds(lambda: plain_mean(states)),
        )


def growing() -> Iterator[Figure]:
    """What one more client costs."""
    full, clients = resnet18_clients()

    def ratio(more: int, less: int) -> float:
        """The time of so many clients over that of fewer, per client."""
        times = [
            seconds(lambda count=count: aggregate(full, clients * (count // 10), "fill")) for count in (more, less)
        ]
        return times[0] / more / (times[1] / less)

    for more, less in ((100, 10), (1000, 100)):
        yield Figure(f"time per client, {more} / {less} x resnet18 at 50 %", "<= 1", partial(ratio, more, less))


def shrinking() -> Iterator[Figure]:
    """What smaller messages save: time a byte of a hundred clients, whose one result counts for little."""
    whole = resnet18_clients(1.0)

    def each(full: State, clients: list[tuple[State, IndexMap]]) -> float:
        sent = sum(tensor.nbytes for state, _ in clients for tensor in state.values())
        return seconds(lambda: aggregate(full, clients * 10, "fill")) / sent

    for share in (0.5, 0.25):
        part = resnet18_clients(share)
        yield Figure(
            f"time per byte, 100 x resnet18 at {100 * share:.0f} % / at 100 %",
            "<= 1",
            lambda part=part: each(*part) / each(*whole),
        )


PARTS = {
    "record": recording,
    "aggregate": aggregating,
    "clients": growing,
    "bytes": shrinking,
    "latency": compact_models,
}


def main() -> None:
    """Measure all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    parser.add_argument("--data", type=Path, help="write the figures to this data file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message="Unwrapped parameters")

    for name, part in PARTS.items():
        for figure in part() if arguments.only in (None, name) else ():
            shown(figure, arguments.repeats, arguments.data)


if __name__ == "__main__":
    main()
