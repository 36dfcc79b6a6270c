"""How long does it take to plan a pruning, beside torch-pruning's build and step on the same model?

Prints one line per network, with random weights: the ratio of `hfp.prune` to half of the multiply-accumulates, by the
default criterion, to the building of torch-pruning's dependency graph and one step of its pruner; the memory that
pruning takes beside the model; and the processor time and memory of planning a language model of a billion parameters
without weights. Both sides of a ratio run one after the other in every repeat, as processor time of one thread, so that
other work on the machine disturbs little. With --data the figures are written to the page's data file.

    python examples/benchmarks/planning.py --repeats 5 --data examples/benchmarks/planning.csv

With --sweep the ratio is measured for families of timm, drawn at random and always the same ones, and for those that
are known to take long. Each runs in a process of its own. Where torch-pruning fails, or takes longer than a limit,
hfp is measured alone. Rows that are in the data file are not measured again.

    python examples/benchmarks/planning.py --sweep 25 --repeats 1 --data examples/benchmarks/planning_sweep.csv
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
import torch_pruning as tp
from data_files import Line, put, read
from torch import Tensor, nn
from torch.nn import functional as F

import hfp
from hfp.reconstruct import Coupling

NETWORKS = {
    "resnet50": 64, "mobilenetv3_large_100": 64, "regnety_008": 64, "efficientnet_b0": 64,
    "deit_small_patch16_224": 224,
}  # fmt: skip
TARGET = 3
HELD = {"resnet50": 64, "vit_base_patch16_224": 224}
"""The networks whose memory is measured: name -> pixels."""
SLOWEST = ("efficientvit_m0", "mvitv2_tiny", "sam2_hiera_tiny", "shvit_s1")
"""The models of the sweep that hfp took longest for, beside torch-pruning."""
SECONDS = 25
"""The processor time that one process of the sweep may take."""


class Block(nn.Module):
    """A layer of a language model as Llama has them: attention and a gated network, each after a norm."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.back = nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] to the same."""
        batch, tokens, _ = x.shape
        normed = self.before(x)
        query, key, value = (
            layer(normed).view(batch, tokens, self.heads, self.size).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.size**-0.5)
        x = x + self.back(mixed.transpose(1, 2).reshape(batch, tokens, self.heads * self.size))
        normed = self.between(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class LanguageModel(nn.Module):
    """A model of the kind of Llama: 1.3 thousand million parameters with these sizes."""

    def __init__(self, words: int = 32000, width: int = 2048, layers: int = 22, heads: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.blocks = nn.ModuleList([Block(width, heads, 5632) for _ in range(layers)])
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, tokens] to [batch, tokens, words]."""
        x = self.words(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def seconds(work: Callable[[], object]) -> float:
    """Processor time of `work`."""
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def by_torch_pruning(model: nn.Module, x: Tensor) -> None:
    """torch-pruning's own build and step, which remove half of the channels, or of the heads of attention."""
    heads = {
        module.qkv: module.num_heads if hasattr(module, "num_heads") else module.heads
        for module in model.modules()
        if hasattr(module, "qkv")
    }
    classifier = model.get_classifier()
    ignored = [layer for layer in (classifier if isinstance(classifier, tuple) else (classifier,)) if layer]
    tp.pruner.BasePruner(
        model, x, tp.importance.MagnitudeImportance(), pruning_ratio=0.5, ignored_layers=ignored,
        num_heads=heads, prune_num_heads=bool(heads),
    ).step()  # fmt: skip


def timed(name: str, size: int, repeats: int, alone: bool = False) -> tuple[list[float], list[float]]:
    """Processor times of `hfp.prune` and of torch-pruning's build and step, after one unmeasured run of each.

    With `alone`, there are none of torch-pruning.
    """
    model, x = timm.create_model(name).eval(), torch.randn(1, 3, size, size)
    ours, theirs = [], []
    for _ in range(repeats + 1):
        if not alone:
            victim = copy.deepcopy(model)
            theirs.append(seconds(lambda victim=victim: by_torch_pruning(victim, x)))
        ours.append(seconds(lambda: hfp.prune(model, x, hfp.Budget(macs=0.5))))
    return ours[1:], theirs[1:]


def row(figure: str, unit: str, values: list[float], target: float, digits: int = 1) -> Line:
    """A line of the data file."""
    median = statistics.median(values)
    several = len(values) > 1
    return {
        "figure": figure,
        "unit": unit,
        "repeats": str(len(values)),
        "median": f"{median:.{digits}f}",
        "lowest": f"{min(values):.{digits}f}" if several else "",
        "highest": f"{max(values):.{digits}f}" if several else "",
        "target": f"<= {target:g}",
        "met": "yes" if median <= target else "no",
    }


def ratio(name: str, size: int, repeats: int) -> list[Line]:
    """The ratio of one network."""
    ours, theirs = timed(name, size, repeats)
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return [row(f"hfp.prune / build + step ({name}, {size} pixels)", "ratio", ratios, TARGET)]


def memory(name: str, size: int) -> list[Line]:
    """What a pruning holds at its peak beside the model, in sizes of the model, in a process of its own.

    Memory that is freed goes back to the system at once there, so that what is held is measured.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    found = _other_process("--held", name, str(size), environment=environment)
    return [row(f"memory beside the model, at the peak ({name}, {size} pixels)", "models", [found], 1.1, 2)]


def held(name: str, size: int) -> float:
    """Peak memory of the second pruning of a model, beside what was held before, as a share of the model's size."""
    model, x = timm.create_model(name).eval(), torch.randn(1, 3, size, size)
    hfp.prune(model, x, hfp.Budget(macs=0.5))
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    hfp.prune(model, x, hfp.Budget(macs=0.5))
    state = model.state_dict().values()
    return (_status("VmHWM") - before) / sum(tensor.numel() * tensor.element_size() for tensor in state)


def language_model() -> list[Line]:
    """The time and memory of following a language model without weights and counting a plan of half its channels."""
    with torch.device("meta"):
        model = LanguageModel()
    tokens = torch.zeros(1, 16, dtype=torch.long)

    def plan() -> None:
        coupling = Coupling.trace(model, tokens)
        coupling.costs(coupling.plan({name: range(size // 2) for name, size in coupling.sizes.items()}).kept)

    took = seconds(plan)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    figure = f"a language model of {count:.1f} thousand million parameters without weights"
    peak = row(f"memory of the process that plans {figure}", "GB", [_status("VmHWM") / 1e9], 2)
    return [row(f"plan {figure}", "seconds", [took], 60, 0), peak]


def swept(count: int, repeats: int, data: Path) -> None:
    """Measure families of timm that the sweep has not measured yet."""
    sweep = {
        line["model"]: line for line in read(Path(__file__).with_name("timm_sweep.csv")) if line["source"] == "timm"
    }
    known = {line["model"] for line in read(data)}
    for name in dict.fromkeys((*random.Random(0).sample(sorted(sweep), count), *SLOWEST)):
        if name not in known:
            line = compared(name, int(sweep[name]["input"]), repeats)
            print(
                "{model:<40} {seconds:>7} s, torch-pruning {reference:>7} s, ratio {ratio:>5} {why}".format(**line),
                flush=True,
            )
            put(data, ("package", "model"), [line])


def compared(name: str, size: int, repeats: int) -> Line:
    """One model of the sweep; where torch-pruning or hfp fails, the line says which and why."""
    line = {
        "package": "timm",
        "model": name,
        "input": str(size),
        "seconds": "",
        "reference": "",
        "ratio": "",
        "why": "",
    }
    try:
        ours, theirs = _forked(name, size, repeats)
        mine, other = statistics.median(ours), statistics.median(theirs)
        return {**line, "seconds": f"{mine:.2f}", "reference": f"{other:.2f}", "ratio": f"{mine / other:.2f}"}
    except ValueError as error:
        why = " ".join(str(error).split())[:120]
    try:
        ours, _ = _forked(name, size, repeats, True)
        return {**line, "seconds": f"{statistics.median(ours):.2f}", "why": f"torch-pruning: {why}"}
    except ValueError as error:
        return {**line, "why": f"hfp: {' '.join(str(error).split())[:120]}"}


def _forked(*arguments: Any) -> tuple[list[float], list[float]]:
    """What `timed` returns in a process of its own, which has everything loaded already.

    Raises:
        ValueError: the process failed, or took more processor time than it may.
    """
    fork = multiprocessing.get_context("fork")
    reader, writer = fork.Pipe(duplex=False)
    child = fork.Process(target=_answer, args=(writer, arguments))
    child.start()
    writer.close()
    try:
        found = reader.recv()
    except EOFError:
        child.join()
        limited = child.exitcode == -signal.SIGXCPU
        found = f"no result within {SECONDS} s of processor time" if limited else f"exit status {child.exitcode}"
    child.join()
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _answer(writer: Connection, arguments: tuple[Any, ...]) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    try:
        writer.send(timed(*arguments))
    except Exception as error:
        writer.send(f"{type(error).__name__}: {error}")


def _other_process(*arguments: str, environment: dict[str, str] | None = None) -> Any:
    """What this script prints as JSON in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def _status(name: str) -> int:
    """A figure of this process in bytes: VmRSS (memory now) or VmHWM (at the peak)."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    """Measure all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=(*NETWORKS, "language-model", "memory"), help="the rows of one kind")
    parser.add_argument("--data", type=Path, help="write the figures to this data file")
    parser.add_argument("--sweep", type=int, metavar="FAMILIES", help="measure families of timm instead")
    parser.add_argument("--held", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message="Unwrapped parameters")
    if given.held:
        print(json.dumps(held(given.held[0], int(given.held[1]))))
    elif given.sweep is not None:
        swept(given.sweep, given.repeats, given.data or Path(__file__).with_name("planning_sweep.csv"))
    else:
        rows(given.repeats, given.only, given.data)


def rows(repeats: int, only: str | None, data: Path | None) -> None:
    """Measure the rows of the page's first table."""
    made: list[tuple[str, Callable[[], list[Line]]]] = [("language-model", language_model)]
    made += [(name, partial(ratio, name, size, repeats)) for name, size in NETWORKS.items()]
    made += [("memory", partial(memory, name, size)) for name, size in HELD.items()]
    for name, measure in made:
        for line in measure() if only in (None, name) else ():
            print("{figure:<80} {median:>5} ({lowest} to {highest}), target {target}".format(**line), flush=True)
            if data:
                put(data, ("figure",), [line])


if __name__ == "__main__":
    main()
