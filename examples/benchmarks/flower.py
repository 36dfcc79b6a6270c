"""What Flower costs: the same rounds embedded, simulated and deployed on loopback; the server's memory by clients.

    python examples/benchmarks/flower.py overhead --data examples/benchmarks/flower.csv
    python examples/benchmarks/flower.py memory --data examples/benchmarks/flower.csv

Processor seconds are those of every process of a run, sampled from /proc (Linux); a round's are the difference between
a long and a short run, divided by the rounds between them, so that starting up does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_files import Line, put

from hfp.flower.local import LocalDeployment

APP = Path(__file__).parent.parent / "flower"
TICK = os.sysconf("SC_CLK_TCK")
SHORT, LONG = 2, 4
WAYS = ["embedded", "simulation", "deployment"]
EMBEDDED = "import json, sys; from hfp import Experiment, simulate; import torch; torch.set_num_threads(1)\n"


class Watch:
    """Processor time and peak memory of all processes with a marker in their environment."""

    def __init__(self, marker: str) -> None:
        self._marker, self._seconds, self._peaks = marker.encode(), {}, {}
        self._names: dict[int, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        return sum(self._seconds.values())

    def peak(self, name: str) -> int:
        """The largest resident set, in bytes, of a process whose command line has `name`."""
        return max((peak for pid, peak in self._peaks.items() if name in self._names[pid]), default=0)

    def _sample(self) -> None:
        while not self._stop.wait(0.1):
            for pid in self._marked():
                try:
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    status = Path(f"/proc/{pid}/status").read_text()
                except OSError:
                    continue
                self._seconds[pid] = (int(fields[11]) + int(fields[12])) / TICK
                high = [line for line in status.splitlines() if line.startswith("VmHWM")]
                self._peaks[pid] = int(high[0].split()[1]) * 1024 if high else self._peaks.get(pid, 0)

    def _marked(self) -> Iterator[int]:
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            pid = int(entry.name)
            try:
                if pid not in self._names and self._marker in (entry / "environ").read_bytes():
                    self._names[pid] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if pid in self._names:
                yield pid


@contextmanager
def deployment(simulation: bool) -> Iterator[LocalDeployment]:
    with (
        tempfile.TemporaryDirectory(prefix="hfp-cost-") as folder,
        LocalDeployment(Path(folder), simulation=simulation, environment={"OMP_NUM_THREADS": "1"}) as local,
    ):
        local.start_link()
        yield local


def measure(
    local: LocalDeployment, rounds: int, clients: int, settings: str, simulated: bool, app: Path = APP
) -> dict[str, float]:
    """One run on a deployment: processor seconds of all its processes, wall seconds of its later rounds, memory."""
    out = local.folder / f"run-{time.monotonic_ns()}"
    config = [f'{settings} rounds={rounds} clients={clients} quorum={clients} out="{out}"']
    with Watch(f"FLWR_HOME={local.home}") as watch:
        process = local.start_run(app, config, nodes=clients if simulated else None)
        process.wait()
        time.sleep(1)
    if not (out / "metrics.jsonl").exists():
        sys.exit(f"the run came to nothing:\n{local.log('run').read_text()[-2000:]}")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "cpu": watch.seconds,
        "wall": sum(line["seconds"] for line in lines[1:]) / max(len(lines) - 1, 1),
        "server": watch.peak("flwr-simulation" if simulated else "flwr-serverapp"),
    }


def embedded(rounds: int, clients: int, settings: dict[str, object]) -> dict[str, float]:
    code = EMBEDDED + f"run = simulate(Experiment(clients={clients}, rounds={rounds}, **{settings!r}))\n"
    code += "print(json.dumps([record.seconds for record in run.history]))"
    with tempfile.TemporaryDirectory() as folder, Watch(f"HFP_COST={folder}") as watch:
        environment = {**os.environ, "HFP_COST": folder, "OMP_NUM_THREADS": "1"}
        output = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True).stdout
        seconds = json.loads(output)
        peak = watch.peak("python")
        return {"cpu": watch.seconds, "wall": sum(seconds[1:]) / max(len(seconds) - 1, 1), "server": peak}


def overhead(ways: list[str], clients: int = 3) -> Iterator[Line]:
    """A round's processor and wall seconds in each way of running the same clients."""
    settings = "train-images=300 threads=1 wait=300.0"
    same = {"train_images": 300}
    for way in ways:
        if way == "embedded":
            yield _per_round(way, clients, *(embedded(rounds, clients, same) for rounds in (SHORT, LONG)))
            continue
        simulated = way == "simulation"
        with deployment(simulated) as local:
            if not simulated:
                local.start_nodes(clients)
            both = (measure(local, rounds, clients, settings, simulated) for rounds in (SHORT, LONG))
            yield _per_round(way, clients, *both)


def _per_round(way: str, clients: int, short: dict[str, float], long: dict[str, float]) -> Line:
    """What a round costs, from a short and a long run."""
    per_round = (long["cpu"] - short["cpu"]) / (LONG - SHORT)
    return {
        "way": way,
        "clients": str(clients),
        "cpu_seconds_per_round": f"{per_round:.2f}",
        "cpu_seconds_to_start": f"{short['cpu'] - SHORT * per_round:.1f}",
        "wall_seconds_per_round": f"{long['wall']:.2f}",
        "peak_megabytes": f"{long['server'] / 1e6:.0f}",
    }


LARGE = """
import torch
from torch import nn

def model():
    hidden = nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 1024), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(1024, 10))

def client_data(client, clients):
    return torch.randn(4, 1, 8, 8), torch.arange(4)

def test_data():
    return torch.randn(20, 1, 8, 8), torch.arange(20) % 10
"""


def memory(inline: bool) -> Iterator[Line]:
    """The peak memory of the server's process for 10 and for 100 clients with full models of 17.9 MB each.

    It is that of Flower's simulation; `inline` runs server and clients in one process, one message after the other,
    through Flower's serialisation but without Ray, where the process also holds one client's work.
    """
    settings = 'method="fedavg" problem="large_problem" threads=1 wait=300.0'
    with tempfile.TemporaryDirectory(prefix="hfp-large-") as folder:
        app = Path(folder) / "app"
        shutil.copytree(APP, app)
        (app / "large_problem.py").write_text(LARGE)
        for clients in (10, 100):
            if inline:
                words = [sys.executable, "-c", INLINE, str(clients), folder, str(TESTS)]
                peak = float(subprocess.run(words, check=True, capture_output=True).stdout.split()[-1])
            else:
                with deployment(simulation=True) as local:
                    peak = measure(local, 2, clients, settings, True, app)["server"] / 1e6
            way = "one process" if inline else "simulation, large models"
            yield {"way": way, "clients": str(clients), "peak_megabytes": f"{peak:.0f}"}


TESTS = Path(__file__).parents[2] / "tests" / "support"
INLINE = """
import resource, sys
clients, folder, support = int(sys.argv[1]), *sys.argv[2:]
sys.path[:0] = [folder + "/app", support]
from inline_grid import InlineGrid
from hfp.flower import client, server
from hfp.flower.settings import Settings
config = {"method": "fedavg", "clients": clients, "rounds": 2, "problem": "large_problem", "threads": 1}
settings = Settings(problem="large_problem", in_flight=4, threads=1, out=f"{folder}/out-{clients}")
server.run(InlineGrid(client.app, clients, config), server.experiment_from(config), settings, say=lambda _: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
"""


def main() -> None:
    """Measure, print, and write to the data file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "memory"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="ways of running, for overhead")
    parser.add_argument("--inline", action="store_true", help="memory without Ray: all in one process")
    parser.add_argument("--data", type=Path, help="write the figures to this data file")
    given = parser.parse_args()
    for line in overhead(given.ways) if given.what == "overhead" else memory(given.inline):
        print(", ".join(f"{name} {value}" for name, value in line.items()), flush=True)
        if given.data:
            put(given.data, ("way", "clients"), [line])


if __name__ == "__main__":
    main()
