"""What does a round cost with 10, 100 and 1,000 clients of which it asks ten, and does memory grow over 200 rounds?

    python examples/benchmarks/many_clients.py --data examples/benchmarks/many_clients.csv

Fashion-MNIST, 20 images per client, ResNet-8, CA-HFP, with a checkpoint and a test on 500 images in every round. Each
number of clients runs in a process of its own, because a process's peak memory never falls. Seconds are those of the
processor, which others who use the machine do not change.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import data_files

from hfp import Experiment, simulate
from hfp.data import load_dataset
from hfp.data.dataset import Split
from hfp.federation.rounds import Outcome
from hfp.results.checkpoint import CHECKPOINT

ASKED, IMAGES, TESTED = 10, 20, 500
FIRST = 20
"""Rounds after which the first look is taken at memory: by then every cache is filled."""


def main() -> None:
    """Measure each number of clients in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", nargs="+", type=int, default=[10, 100, 1000], help="how many clients there are")
    parser.add_argument("--rounds", nargs="+", type=int, default=[40, 40, 200], help="how many rounds each runs")
    parser.add_argument("--data", type=Path, default=Path("many_clients.csv"), help="the CSV file to write")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        data_files.put(arguments.data, ["clients"], [measured(arguments.clients[0], arguments.rounds[0])])
        return
    for clients, rounds in zip(arguments.clients, arguments.rounds, strict=True):
        words = ["--clients", str(clients), "--rounds", str(rounds), "--data", str(arguments.data), "--alone"]
        subprocess.run([sys.executable, __file__, *words], check=True)


def measured(clients: int, rounds: int) -> dict[str, object]:
    """Run so many rounds with so many clients, and return what a round took and what memory did."""
    data = load_dataset("fmnist", None, limit=IMAGES * clients)
    data = dataclasses.replace(data, test=Split(data.test.images[:TESTED], data.test.labels[:TESTED]))
    experiment = Experiment(
        dataset=data, clients=clients, participation=ASKED / clients, rounds=rounds, partition="iid", head_start=1.0
    )
    resident: list[float] = []
    spent = [time.process_time()]
    sizes: list[float] = []
    with tempfile.TemporaryDirectory() as folder:

        def look(_: Outcome) -> None:
            resident.append(resident_megabytes())
            spent.append(time.process_time())
            path = Path(folder) / CHECKPOINT
            sizes.append(path.stat().st_size / 1e6 if path.exists() else 0.0)

        history = simulate(experiment, look, resume=folder).history
    last = history[-1]
    return {
        "clients": clients,
        "rounds": rounds,
        "asked": len(last.clients),
        "seconds": round(statistics.median(after - before for before, after in pairwise(spent[1:])), 2),
        "megabytes_down": round(last.bytes_down / 1e6, 2),
        "statistics_megabytes_down": round(last.statistics[0] / 1e6, 2),
        "resident_first": round(resident[FIRST - 1], 1),
        "resident_last": round(resident[-1], 1),
        "peak_first": round((history[FIRST - 1].process_peak_bytes or 0) / 1e6, 1),
        "peak_last": round((last.process_peak_bytes or 0) / 1e6, 1),
        "checkpoint_first": round(sizes[FIRST - 1], 3),
        "checkpoint_last": round(sizes[-1], 3),
    }


def resident_megabytes() -> float:
    """Read from Linux how much memory the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    main()
