"""The cost columns of table I of arXiv 2603.12591 from our own counts, beside the paper's.

python examples/benchmarks/paper_costs.py --data examples/benchmarks/paper_costs.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from data_files import put
from torch import nn
from torch_pruning.dependency.group import Group

from hfp.costs.macs import macs, parameters
from hfp.errors import unknown
from hfp.importance.groups.members import members
from hfp.layers.products import is_depthwise
from hfp.methods.interface.counts import keep_count
from hfp.models import classifier_of, create_model
from hfp.reconstruct import Coupling, compact_model

BATCH = 128
SETTING = ("network", "method", "removed", "rule")

RULES: Mapping[str, str] = MappingProxyType(
    {
        "all": "every layer loses the ratio of its channels",
        "inner": "only layers that no shortcut adds to: the channels between residual blocks all stay",
    }
)

PAPER: Mapping[tuple[str, str], tuple[float, float, float]] = MappingProxyType(
    {
        ("vgg16", "fedavg"): (15.1e6, 15.1e6, 40.3e9),
        ("vgg16", "fedprox"): (15.1e6, 15.1e6, 20.2e9),
        ("vgg16", "prunefl"): (4.30e6, 4.30e6, 20.1e9),
        ("vgg16", "fedmp"): (3.95e6, 3.95e6, 10.2e9),
        ("vgg16", "dapperfl"): (3.95e6, 15.1e6, 10.3e9),
        ("vgg16", "ca-hfp"): (3.95e6, 3.95e6, 10.2e9),
        ("resnet32", "fedavg"): (466e3, 466e3, 9.01e9),
        ("resnet32", "fedprox"): (466e3, 466e3, 4.45e9),
        ("resnet32", "prunefl"): (261e3, 261e3, 5.45e9),
        ("resnet32", "fedmp"): (254e3, 254e3, 5.20e9),
        ("resnet32", "dapperfl"): (254e3, 466e3, 5.23e9),
        ("resnet32", "ca-hfp"): (254e3, 254e3, 5.20e9),
    }
)
"""The paper's columns: parameters up, parameters down, FLOPs, by network and method."""


@dataclass(frozen=True)
class CostRow:
    """One method at one ratio: parameters up and down, and multiply-accumulates of one forward pass of a batch.

    PruneFL has no submodel: it is charged for the share of weights that a submodel would hold, taken evenly from all
    layers. FedProx runs the share ``1 - ratio`` of its steps. DapperFL's dense steps aren't in its column, as in the
    paper; a run counts them.
    """

    network: str
    method: str
    ratio: float
    rule: str
    up: int
    down: int
    macs: int


def paper_costs(network: str, ratios: Sequence[float] = (0.25, 0.5, 0.75), batch: int = BATCH) -> list[CostRow]:
    """The paper's columns for one of its networks (vgg16, resnet32), 32×32 images of 3 channels and 10 classes.

    Raises:
        InputError: another network, or a ratio that leaves a layer without channels.
    """
    networks = {name for name, _ in PAPER}
    if network not in networks:
        raise unknown("network of the paper", network, networks)
    model = create_model(network)
    groups = Coupling.trace(model, torch.zeros(2, 3, 32, 32), ignored_layers=[classifier_of(model)])
    return [row for rule in RULES for ratio in ratios for row in _rows(network, model, groups, ratio, rule, batch)]


def submodel(model: nn.Module, groups: Coupling, ratio: float, rule: str) -> nn.Module:
    """The model without the share `ratio` of the channels that a rule (`RULES`) takes from.

    Raises:
        InputError: an unknown rule, or a ratio that leaves a layer without channels.
    """
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    group = groups.groups_of(model)
    taken = [name for name in groups.names if rule == "all" or _writers(group(name)) == 1]
    kept = {name: range(keep_count(groups.sizes[name], ratio, name)) for name in taken}
    return compact_model(model, groups.index_map(groups.plan(kept)))


def _writers(group: Group) -> int:
    """How many convolutions and linear layers write to a coupled group's channels; depthwise ones pass them on."""
    layers = (member.layer for member in members(group) if member.direction == "out")
    return sum(isinstance(layer, (nn.Linear, nn.Conv2d)) and not is_depthwise(layer) for layer in layers)


def _rows(network: str, model: nn.Module, groups: Coupling, ratio: float, rule: str, batch: int) -> Iterator[CostRow]:
    example = torch.zeros(1, 3, 32, 32)
    compact = submodel(model, groups, ratio, rule)
    full, small = parameters(model), parameters(compact)
    work, less = batch * macs(model, example), batch * macs(compact, example)
    columns = {
        "fedavg": (full, full, work),
        "fedprox": (full, full, round((1 - ratio) * work)),
        "prunefl": (small, small, round(small / full * work)),
        "fedmp": (small, small, less),
        "dapperfl": (small, full, less),
        "ca-hfp": (small, small, less),
    }
    for method, (up, down, count) in columns.items():
        yield CostRow(network, method, ratio, rule, up, down, count)


def lines(rows: Sequence[CostRow]) -> Iterator[dict[str, Any]]:
    """One network's rows as lines of the data file, and the paper's own figures, which are at half, after them."""
    for row in rows:
        yield _line(row.network, row.method, row.ratio, row.rule, row.up, row.down, row.macs)
    for (network, method), figures in PAPER.items():
        if network == rows[0].network:
            yield _line(network, method, 0.5, "the paper", *figures)


def _line(network: str, method: str, ratio: float, rule: str, up: float, down: float, work: float) -> dict[str, Any]:
    setting = {"network": network, "method": method, "removed": f"{100 * ratio:.0f}", "rule": rule}
    figures = {"kiloparameters_up": up / 1e3, "kiloparameters_down": down / 1e3}
    return {**setting, **{name: f"{value:.0f}" for name, value in figures.items()}, "gmacs": f"{work / 1e9:.2f}"}


def main() -> None:
    """Count, print, and write to the data file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="write the figures to this data file")
    given = parser.parse_args()
    made = [line for network in ("vgg16", "resnet32") for line in lines(paper_costs(network))]
    for line in made:
        print(", ".join(line.values()))
    if given.data:
        put(given.data, SETTING, made)


if __name__ == "__main__":
    main()
