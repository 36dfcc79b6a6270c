"""Can any model be pruned? Protocol E over every architecture family of timm, and torchvision's classifiers.

For one smallest variant of each family, with random weights: remove half of the channels of every coupled group, then
check that

- putting the kept entries back into the full state gives the full state (`embed(restrict(full)) == full`),
- the compact model computes what the full model computes without the removed channels (evaluation mode, float64,
  atol 1e-4),
- a file written and loaded into a fresh skeleton gives exactly the same outputs,
- something was removed: at least a quarter of the multiply-accumulates.

    python examples/benchmarks/timm_sweep.py --results sweep                       # timm's families, resumable
    python examples/benchmarks/timm_sweep.py --results sweep --source torchvision
    python examples/benchmarks/timm_sweep.py --results sweep --baseline --sample 26 --timeout 120

Each model runs in its own process, one thread, one after the other; results are JSON lines, and a second start goes on
where the first one stopped. With `--data FILE` what has run is written to the page's data file. `--baseline` runs
torch-pruning's own pruner instead, which has to give a smaller model that runs and whose outputs have the shapes they
had.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data_files import Line, commit, put

MOST_MACS_LEFT = 0.75
ATOL = 1e-4
SIZES = (64, 96, 128, 160, 192, 224, 240, 256)  # tried from small to large, where a model takes several


@dataclass(frozen=True)
class Row:
    """What happened to one model. Shares are of the full model; seconds are of the whole process."""

    source: str
    family: str
    model: str
    passed: bool
    reason: str = ""
    tool: str = "hfp"
    size: int = 0
    removed: float = 0.0
    macs: float = 0.0
    params: float = 0.0
    error: float = 0.0
    seconds: float = 0.0
    commit: str = ""
    left_alone: dict[str, int] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def main() -> int:
    """Run the sweep and write what has run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder for the JSON lines")
    parser.add_argument("--source", choices=("timm", "torchvision"), default="timm")
    parser.add_argument("--all", action="store_true", help="all of torchvision's variants, not one a family")
    parser.add_argument("--only", nargs="*", default=[], help="families to run, even if they have run before")
    parser.add_argument("--retry", action="store_true", help="run those again that did not pass")
    parser.add_argument("--stale", action="store_true", help="run those again that another commit was run on")
    parser.add_argument("--baseline", action="store_true", help="prune with torch-pruning's own pruner instead")
    parser.add_argument("--sample", type=int, help="run this many families, drawn at random, always the same")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one model")
    parser.add_argument("--data", type=Path, help="write the figures of what has run to this data file")
    parser.add_argument("--one", nargs=2, metavar=("FAMILY", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tool = "torch-pruning" if arguments.baseline else "hfp"
    if arguments.one:
        print(json.dumps(asdict(examine(tool, arguments.source, *arguments.one))))
        return 0
    arguments.results.mkdir(parents=True, exist_ok=True)
    lines = arguments.results / "sweep.jsonl"
    state = commit()
    done = {
        (row.tool, row.source, row.model)
        for row in read(lines)
        if (row.passed or not arguments.retry) and (row.commit == state or not arguments.stale)
    }
    wanted = list(candidates(arguments.source, arguments.results, arguments.all))
    if arguments.sample:
        wanted = sorted(random.Random(0).sample(wanted, min(arguments.sample, len(wanted))))
    for family, model in wanted:
        known = (tool, arguments.source, model) in done
        if arguments.only and family not in arguments.only or not arguments.only and known:
            continue
        row = in_process(tool, arguments.source, family, model, arguments.timeout)
        with lines.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        state = "pass" if row.passed else f"FAIL {row.reason}"
        print(f"{row.family:28} {row.model:40} {row.seconds:5.0f} s  MACs {row.macs:.2f}  {state}", flush=True)
    if arguments.data:
        put(arguments.data, ("source", "model"), figures(read(lines)))
    return 0


def read(lines: Path) -> list[Row]:
    """The latest row of every model."""
    found = [Row(**json.loads(line)) for line in lines.read_text().splitlines()] if lines.exists() else []
    return list({(row.tool, row.source, row.model): row for row in found}.values())


def candidates(source: str, results: Path, everything: bool) -> Iterator[tuple[str, str]]:
    """(family, model): the variant with the fewest parameters of every family. Kept in a file, as it takes minutes."""
    kept = results / f"{source}{'-all' if everything else ''}.json"
    if not kept.exists():
        found: dict[str, tuple[int, str]] = {}
        for family, model in _variants(source):
            parameters = _parameters(source, model)
            name = model if everything else family
            if parameters and (name not in found or parameters < found[name][0]):
                found[name] = (parameters, model)
        kept.write_text(json.dumps({name: model for name, (_, model) in found.items()}, indent=1))
    yield from json.loads(kept.read_text()).items()


def _variants(source: str) -> Iterator[tuple[str, str]]:
    if source == "timm":
        import timm

        yield from ((family, model) for family in timm.list_modules() for model in timm.list_models(module=family))
    else:
        import torchvision

        for model in torchvision.models.list_models(module=torchvision.models):
            yield torchvision.models.get_model_builder(model).__module__.rpartition(".")[2], model


def create(source: str, model: str) -> Any:
    """A model with random weights."""
    if source == "timm":
        import timm

        return timm.create_model(model)
    import torchvision

    builder = torchvision.models.get_model_builder(model)
    noisy = {"init_weights": True} if model in ("googlenet", "inception_v3") else {}
    return builder(weights=None, **noisy)


def _parameters(source: str, model: str) -> int:
    import torch

    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in create(source, model).parameters())
    except Exception:  # its code looks at the values of weights
        pass
    try:
        return sum(parameter.numel() for parameter in create(source, model).parameters())
    except Exception as error:  # a model that can't be built at all
        print(f"{model}: {error}", file=sys.stderr)
        return 0


def in_process(tool: str, source: str, family: str, model: str, timeout: float) -> Row:
    """Examine one model in a process of its own."""
    command = [sys.executable, __file__, "--results", ".", "--source", source, "--one", family, model]
    command += ["--baseline"] if tool != "hfp" else []
    start = time.monotonic()
    failed = partial(Row, source, family, model, False, tool=tool)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return failed(f"no result within {timeout:.0f} s", seconds=timeout, commit=commit())
    seconds = round(time.monotonic() - start, 1)
    if done.returncode or not done.stdout.strip():
        last = done.stderr.strip().splitlines()[-1:] or ["no output"]
        reason = f"process ended with {done.returncode}: {last[0][:300]}"
        return failed(reason, seconds=seconds, commit=commit())
    return Row(**{**json.loads(done.stdout.splitlines()[-1]), "seconds": seconds, "commit": commit()})


def examine(tool: str, source: str, family: str, model: str) -> Row:
    """Protocol E for one model."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    full = create(source, model).eval()
    size = _size(full, source)
    inputs = torch.randn(2, 3, size, size)
    try:
        found = _examined(source, model, full, inputs) if tool == "hfp" else _baseline(full, inputs)
        return Row(source, family, model, tool=tool, size=size, **found)
    except Exception as error:
        return Row(source, family, model, False, f"{type(error).__name__}: {error}"[:400], tool, size)


def _size(full: Any, source: str) -> int:
    """The smallest input that the model takes."""
    import torch

    config = getattr(full, "pretrained_cfg", {})
    usual = config.get("input_size", (3, 224, 224))[-1]
    if config.get("fixed_input_size"):
        return usual
    least = (config.get("min_input_size") or (3, 0, 0))[-1]
    for size in (*(size for size in SIZES if least <= size < usual), usual):
        try:
            with torch.no_grad():
                full(torch.zeros(2, 3, size, size))
            return size
        except Exception:
            continue
    return usual


def _examined(source: str, model: str, full: Any, inputs: Any) -> dict[str, Any]:
    import torch

    import hfp
    from hfp.reconstruct import Coupling

    result = hfp.prune(full, inputs, hfp.Budget(ratio=0.5))
    state = full.state_dict()
    kept = result.index_map.restrict(state)
    back = result.index_map.embed(kept, into=state)
    problems = (
        [] if all(torch.equal(back[name], state[name]) for name in state) else ["embed(restrict(full)) is not full"]
    )
    problems += _loaded(source, model, result, inputs)
    coupling = Coupling.trace(full, inputs)
    full, inputs = full.double(), inputs.double()  # random networks may give outputs in the thousands
    with torch.no_grad():
        compact = _tensors(result.model.double()(inputs))
        masked = _tensors(coupling.masked_output(full, inputs, result.index_map))
    error = max(float((a - b).abs().max()) for a, b in zip(compact, masked, strict=True))
    if not error <= ATOL:
        problems.append(f"the compact model differs from the masked full model by {error:.2g}")
    costs = {name: after / before for name, (before, after) in result.report.costs.items()}
    if costs["macs"] > MOST_MACS_LEFT:
        problems.append(f"{costs['macs']:.0%} of the multiply-accumulates are left")
    reasons: dict[str, int] = {}
    for layer in result.report.layers:
        if layer.reason and "output of the model" not in layer.reason and layer.kind != "BatchNorm2d":
            reasons[layer.reason[:200]] = reasons.get(layer.reason[:200], 0) + layer.before
    return {
        "passed": not problems, "reason": "; ".join(problems), "removed": result.report.ratio, "macs": costs["macs"],
        "params": costs["params"], "error": error, "left_alone": reasons, "unknown": list(result.report.unknown),
    }  # fmt: skip


def _baseline(full: Any, inputs: Any) -> dict[str, Any]:
    """torch-pruning's own pruner, told the number of heads and to leave the classifier alone."""
    import torch
    import torch_pruning as tp

    from hfp.costs.macs import macs, parameters

    classifier = full.get_classifier() if hasattr(full, "get_classifier") else list(full.modules())[-1]
    ignored = [module for module in (classifier if isinstance(classifier, tuple) else (classifier,)) if module]
    heads = {module.qkv: module.num_heads for module in full.modules() if hasattr(module, "qkv")}
    before, count = (macs(full, inputs), parameters(full)), len(_tensors(full(inputs)))
    shapes = [tensor.shape for tensor in _tensors(full(inputs))]
    importance = tp.importance.GroupMagnitudeImportance()
    pruner = tp.pruner.BasePruner(
        full, inputs, importance, pruning_ratio=0.5, ignored_layers=ignored, num_heads=heads, prune_num_heads=True
    )
    pruner.step()
    for module in full.modules():
        if hasattr(module, "qkv") and module.qkv in pruner.num_heads:
            module.num_heads = pruner.num_heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
    with torch.no_grad():
        outputs = _tensors(full(inputs))
    costs = macs(full, inputs) / before[0], parameters(full) / before[1]
    problems = [] if [tensor.shape for tensor in outputs] == shapes else [f"{count} outputs have other shapes"]
    if costs[0] > MOST_MACS_LEFT:
        problems.append(f"{costs[0]:.0%} of the multiply-accumulates are left")
    return {"passed": not problems, "reason": "; ".join(problems), "macs": costs[0], "params": costs[1]}


def _loaded(source: str, model: str, result: Any, inputs: Any) -> list[str]:
    import torch

    import hfp

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        hfp.save_pruned(result, path)
        again = hfp.load_pruned(path, create(source, model)).model.eval()
    with torch.no_grad():
        pairs = zip(_tensors(result.model(inputs)), _tensors(again(inputs)), strict=True)
        same = all(torch.equal(a, b) for a, b in pairs)
    return [] if same else ["the loaded model gives other outputs"]


def _tensors(output: Any) -> list[Any]:
    from hfp.layers.calling import results

    return results(output)


def figures(rows: list[Row]) -> Iterator[Line]:
    """What has run as lines of the data file; `plain` is what torch-pruning's own pruner did, where it was run."""
    plain = {(row.source, row.model): row.reason or "pass" for row in rows if row.tool != "hfp"}
    for row in sorted((row for row in rows if row.tool == "hfp"), key=lambda row: (row.source, row.family)):
        yield {
            "source": row.source,
            "family": row.family,
            "model": row.model,
            "input": str(row.size),
            "macs_left": f"{100 * row.macs:.1f}",
            "params_left": f"{100 * row.params:.1f}",
            "largest_difference": f"{row.error:.1g}",
            "result": _shortened(row.reason or "pass"),
            "plain": _shortened(plain.get((row.source, row.model), "")),
            "commit": row.commit or "unknown",
        }


def _shortened(text: str) -> str:
    return " ".join(text.split())[:160]


if __name__ == "__main__":
    sys.exit(main())
