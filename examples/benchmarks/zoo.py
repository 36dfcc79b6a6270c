"""Can any model be pruned? Real architectures of six packages, in their smallest configurations, with random weights.

For each model, `hfp.prune(model, inputs, hfp.Budget(macs=0.5))` removes half of the multiply-accumulates. Then

- putting the kept entries back into the full state gives the full state (`embed(restrict(full)) == full`),
- the compact model computes what the full model computes without the removed channels, on inputs that it was not
  checked with while it was pruned,
- a file written and loaded into a fresh skeleton gives exactly the same outputs,
- a language model generates the same text with its cache and without,
- a training step gives finite weights that differ.

The compact model is then exported to ONNX, and ONNX Runtime has to compute what PyTorch computes. The full model is
exported where the compact one can't be, which says whose limit that is. Last, torch-pruning's own pruner runs on the
model. It is told which layers write outputs, and has to give a smaller model that runs and whose outputs have the
shapes they had.

    python examples/benchmarks/zoo.py --results zoo --data examples/benchmarks/zoo.csv
    python examples/benchmarks/zoo.py --results zoo --only transformers/Llama --again

Each model runs in its own process, one thread, one after the other. Each stage has its own limit of processor time, and
a stage that reaches it leaves the results of the others. Results are JSON lines; a second start goes on where the first
one stopped, and two starts with `--part 1/2` and `--part 2/2` share the work. The packages come with
`pip install "hfp[zoo]" "hfp[onnx]"`.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from data_files import Line, commit, put
from data_files import read as read_lines
from torch import Tensor
from zoo_models import Case, Make, catalogue

import hfp
from hfp.costs.macs import macs
from hfp.layers.calling import call, random_state_kept, results
from hfp.pruning.export import export_onnx
from hfp.reconstruct import Coupling

TOLERANCE = 1e-4
"""How far a compact model may be from its reference, as a share of the largest output, in float32."""

TELLING = 100
"""How many times further the reference has to be from the full model, so that a wrong model would be noticed."""

PACKAGES = ("transformers", "torchvision", "timm", "ultralytics", "diffusers", "segmentation_models_pytorch",
            "diffusers.models.unets.unet_2d_condition", "torch_pruning")  # fmt: skip
"""What the models and the checks need."""

OUTCOMES = {"passed": "pass", "refused": "refused", "failed": "failed"}
"""Column of the figures -> outcome of a model."""

ONNX_SECONDS = 60
"""What the export of one of these models may take, with the original's where that is needed."""

PLAIN_SECONDS = 20
"""What torch-pruning's own pruner may take for one of these models."""

STAGES = ("outcome", "onnx", "plain")
"""What is found out about a model, one after the other; columns of a row."""

NO_ORIGINAL = "the original does not export"
NO_COMPACT = "no compact model"

_PATIENCE = 100
"""How many times longer than its processor time a stage may take, where other work shares the machine."""


@dataclass(frozen=True)
class Row:
    """What happened to one model. Shares are of the full model and gone; seconds are processor time of all checks.

    outcome: "pass", or "refused" or "failed" with where and why.
    onnx: "pass", or why the compact model can't be exported.
    plain: "pass", or what torch-pruning's own pruner does instead.
    """

    package: str
    model: str
    outcome: str
    macs_removed: float = 0.0
    channels_removed: float = 0.0
    difference: float = 0.0
    seconds: float = 0.0
    onnx: str = ""
    plain: str = ""
    commit: str = ""


class Failure(Exception):
    """A property that does not hold."""


class Late(BaseException):
    """A limit of processor time is reached; nothing on the way that handles errors may take it for one."""


@dataclass
class Work:
    """What the checks of a model make, which later stages use."""

    case: Case
    result: Any = None


def main() -> int:
    """Run the models that have not run yet, and write what has run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder for the JSON lines")
    parser.add_argument("--only", nargs="*", default=[""], help="run models whose package/name contains one of these")
    parser.add_argument("--again", action="store_true", help="run them even if they have run before")
    parser.add_argument("--retry", action="store_true", help="run those again that did not pass")
    parser.add_argument("--sample", type=int, help="run this many models, drawn at random, always the same")
    parser.add_argument("--part", default="1/1", help="run one part of the models, such as 1/2 and 2/2 at a time")
    parser.add_argument("--timeout", type=int, default=120, help="seconds of processor time for the checks of a model")
    parser.add_argument("--data", type=Path, help="write the figures of what has run to this data file")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
    warm_up()
    arguments.results.mkdir(parents=True, exist_ok=True)
    lines = arguments.results / "zoo.jsonl"
    known = {f"{row.package}/{row.model}": row for row in read(lines)}
    state = commit()
    for name, make in wanted(arguments, known):
        row = in_process(Row(*name.split("/"), "", commit=state), make, arguments.timeout)
        with lines.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        found = " | ".join(getattr(row, stage)[:100] for stage in STAGES)
        print(f"{name:60} {row.seconds:5.1f} s  -{row.macs_removed:.0%}  {found}", flush=True)
    if arguments.data:
        rows = [row for row in read(lines) if f"{row.package}/{row.model}" in catalogue()]
        put(arguments.data, ("package", "model"), figures(rows))
        put(
            arguments.data.with_stem(f"{arguments.data.stem}_packages"),
            ("package",),
            totals(read_lines(arguments.data)),
        )
    return 0


def warm_up() -> None:
    """Import what the models and the checks need, once for all processes; much is only imported when it is used."""
    for package in PACKAGES:
        importlib.import_module(package)
    torch.set_num_threads(1)  # and no backward pass here: its threads would not be there after a fork
    case = seeded(catalogue()["transformers/LlamaForCausalLM"])
    result = hfp.prune(case.model, case.inputs, hfp.Budget(macs=0.5))
    check_file(catalogue()["transformers/LlamaForCausalLM"], case, result)
    check_generation(case, result)
    onnx_outcome(Work(case, result))


def read(lines: Path) -> list[Row]:
    """The latest row of every model."""
    found = [Row(**json.loads(line)) for line in lines.read_text().splitlines()] if lines.exists() else []
    return list({(row.package, row.model): row for row in found}.values())


def wanted(arguments: argparse.Namespace, known: Mapping[str, Row]) -> Iterator[tuple[str, Make]]:
    """The models to run now."""
    number, parts = (int(text) for text in arguments.part.split("/"))
    named = {name: make for name, make in catalogue().items() if any(part in name for part in arguments.only)}
    named = dict(sorted(named.items())[number - 1 :: parts])
    if arguments.sample is not None:
        chosen = random.Random(0).sample(sorted(named), min(arguments.sample, len(named)))
        named = {name: make for name, make in named.items() if name in chosen}
    # mixed, so that a run that is cut short has something of every package; timm has a sweep of its own
    mixed = random.Random(1).sample(sorted(named.items()), len(named))
    for name, make in sorted(mixed, key=lambda each: each[0].startswith("timm/")):
        row = known.get(name)
        done = row is not None and (row.outcome == "pass" or not arguments.retry)
        if arguments.again or not done:
            yield name, make


def in_process(row: Row, make: Make, seconds: int) -> Row:
    """Examine one model in a process of its own. What is found out before the process ends is kept."""
    found, reason = alone(partial(stages, row, make, seconds), seconds + ONNX_SECONDS + PLAIN_SECONDS)
    stage, row = found[-1] if found else (STAGES[0], row)
    return replace(row, **{stage: f"failed: {reason}" if stage == STAGES[0] else reason}) if stage else row


def alone(work: Callable[[], Iterator[Any]], seconds: int) -> tuple[list[Any], str]:
    """What `work` yields in a process of its own, which begins with the packages that this one has imported.

    Args:
        work: what is run there.
        seconds: processor time that it may take.

    Returns:
        What arrived, and why no more did; "" where all of it arrived.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, work, seconds))
    process.start()
    there.close()
    found: list[Any] = []
    reason = late(seconds)
    try:
        while here.poll(_PATIENCE * seconds):
            more = here.recv()
            if more is None:
                reason = ""
                break
            found += more
    except EOFError:
        process.join()
        if process.exitcode != -signal.SIGXCPU:
            reason = f"the process ended with {process.exitcode}"
    if process.is_alive() and reason:
        process.kill()
    process.join()
    return found, reason


def _send(there: Any, work: Callable[[], Iterator[Any]], seconds: int) -> None:
    """Send each thing that `work` yields as a list, and None at the end."""
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, used + 2 * seconds))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        for each in work():
            there.send([each])
        there.send(None)


def stages(row: Row, make: Make, seconds: int) -> Iterator[tuple[str, Row]]:
    """The stage that comes next, "" at the end, and what is known of the model by then."""
    work = Work(seeded(make))
    row = examine(row, make, seconds, work)
    yield "onnx", row
    row = replace(row, onnx=_in_time(onnx_outcome, work, ONNX_SECONDS))
    yield "plain", row
    yield "", replace(row, plain=_in_time(plain_outcome, work, PLAIN_SECONDS))


def _in_time(outcome: Callable[[Work], str], work: Work, seconds: int) -> str:
    try:
        with limited(seconds):
            return outcome(work)
    except Late as error:
        return str(error)


def examine(row: Row, make: Make, seconds: int = 120, work: Work | None = None) -> Row:
    """Prune one model and check what came out."""
    start = time.process_time()
    place = ["pruning"]
    outcome, found = "pass", dict[str, Any]()
    try:
        with limited(seconds):
            for known in _examined(make, place, work or Work(seeded(make))):
                found = known
    except Late as error:
        outcome = f"failed: {error}"
    except Exception as error:
        kind = "refused" if place[0] == "pruning" and _is_refusal(error) else f"failed: {place[0]}"
        outcome = f"{kind}: {'' if isinstance(error, Failure) else type(error).__name__ + ': '}{error}"
    return replace(row, outcome=outcome, seconds=round(time.process_time() - start, 1), **found)


def _is_refusal(error: Exception) -> bool:
    """Whether it is one of hfp's own errors: a sentence about what can't be done, before anything is made."""
    return isinstance(error, hfp.InputError | hfp.reconstruct.MapError)


def _examined(make: Make, place: list[str], work: Work) -> Iterator[dict[str, Any]]:
    """What is known so far, after each check; `place` says which one is under way."""
    case = work.case
    work.result = result = hfp.prune(case.model, case.inputs, hfp.Budget(macs=0.5))
    before, after = result.report.costs["macs"]
    found: dict[str, Any] = {"macs_removed": 1 - after / before, "channels_removed": result.report.ratio}
    yield found
    place[0] = "map"
    check_round_trip(case, result)
    place[0] = "masked model"
    found["difference"] = check_masked(case, result)
    yield found
    place[0] = "file"
    check_file(make, case, result)
    if case.generates:
        place[0] = "generation"
        check_generation(case, result)
    place[0] = "training"
    check_training(case, result)


def seeded(make: Make) -> Case:
    """A case in evaluation mode whose random weights are always the same, and large enough for outputs to depend on."""
    with random_state_kept(seed=0), torch.no_grad():
        case = make()
        for weight in case.model.parameters():
            if weight.requires_grad and weight.dim() > 1 and weight.numel():
                weight.normal_(0, weight[0].numel() ** -0.5 * (1 if weight.dim() == 2 else 2**0.5))
            elif weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    case.model.eval()
    return case


@lru_cache(maxsize=1)
def traced(case: Case) -> Coupling:
    """What is coupled in a model."""
    return Coupling.trace(case.model, case.inputs)


def check_round_trip(case: Case, result: Any) -> None:
    """`embed(restrict(full)) == full`.

    Raises:
        Failure: it is not.
    """
    state = case.model.state_dict()
    back = result.index_map.embed(result.index_map.restrict(state), into=state)
    wrong = [name for name in state if not torch.equal(back[name], state[name])]
    if wrong:
        raise Failure(f"embed(restrict(full)) is not full in {', '.join(wrong[:3])}")


def check_masked(case: Case, result: Any) -> float:
    """The largest difference from the masked full model on other inputs, as a share of the largest output.

    Raises:
        Failure: they differ, or the full model is so near that nobody could tell.
    """
    coupling = traced(case)
    try:  # in float64 a rounding error decides nothing, such as which detection scores higher
        compact, masked, full = _three(case, result, coupling, torch.float64)
        if any(value.isnan().any() for value in full):
            raise ValueError("the full model itself computes no numbers in float64")
    except (RuntimeError, TypeError, ValueError):  # its code asks for float32
        compact, masked, full = _three(case, result, coupling, torch.float32)
    wrong = distance(compact, masked)
    if not wrong <= TOLERANCE:
        raise Failure(f"the compact model differs from the masked full model by {wrong:.2g}")
    if distance(full, masked) < TELLING * wrong:
        raise Failure("the outputs of the full model and of the masked one are too alike to tell")
    return wrong


def _three(case: Case, result: Any, coupling: Coupling, kind: torch.dtype) -> tuple[list[Tensor], ...]:
    """The outputs of the compact model, of the masked full model and of the full model, on other inputs."""
    inputs = _to(other_inputs(case.inputs), kind)
    full, compact = (copy.deepcopy(model).eval().to(kind) for model in (case.model, result.model))
    with torch.no_grad(), random_state_kept(seed=0):
        masked = results(coupling.masked_output(full, inputs, result.index_map))
    return outputs(compact, inputs), masked, outputs(full, inputs)


def _to(inputs: Any, kind: torch.dtype) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.to(kind) if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {name: _to(value, kind) for name, value in inputs.items()}
    return type(inputs)(_to(value, kind) for value in inputs) if isinstance(inputs, list | tuple) else inputs


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of all tensors, each as a share of its largest number; infinite for other shapes."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True) if a.numel() or b.numel()]
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)


def other_inputs(inputs: Any) -> Any:
    """The same shapes with other numbers: noise is drawn anew; what may mean something (integers) stays."""
    if isinstance(inputs, Tensor):
        noisy = inputs.is_floating_point() and inputs.dim() > 2
        return torch.roll(inputs, 1, -1).flip(0) if noisy else inputs
    if isinstance(inputs, dict):
        return {name: other_inputs(value) for name, value in inputs.items()}
    return type(inputs)(map(other_inputs, inputs)) if isinstance(inputs, list | tuple) else inputs


def outputs(model: Any, inputs: Any) -> list[Tensor]:
    """The tensors that a model gives, with the same random numbers each time."""
    with torch.no_grad(), random_state_kept(seed=0):
        return results(call(model, inputs))


def check_file(make: Make, case: Case, result: Any) -> None:
    """A saved model that is loaded into a fresh skeleton gives the same outputs.

    Raises:
        Failure: it gives others.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        hfp.save_pruned(result, path)
        again = hfp.load_pruned(path, make().model).model.eval()
    pairs = zip(outputs(result.model, case.inputs), outputs(again, case.inputs), strict=True)
    if not all(torch.equal(a, b) or torch.allclose(a, b, atol=0, rtol=0, equal_nan=True) for a, b in pairs):
        raise Failure("the loaded model gives other outputs")


def check_generation(case: Case, result: Any) -> None:
    """Four more tokens, chosen greedily, are the same with the cache and without.

    Raises:
        Failure: they are not.
    """
    ids = case.inputs["input_ids"][:1]
    settings = {"max_new_tokens": 4, "do_sample": False, "num_beams": 1}
    with torch.no_grad():
        with_cache, without = (result.model.generate(ids, use_cache=use, **settings) for use in (True, False))
    if not torch.equal(with_cache, without):
        raise Failure("generation with the cache differs from generation without")


def onnx_outcome(work: Work) -> str:
    """Whether the compact model can be exported and computes the same in ONNX Runtime, and why not."""
    if work.result is None:
        return NO_COMPACT
    try:
        exported(work.result.model, work.case.inputs)
        return "pass"
    except Exception as error:
        reason = _said(error)
    try:
        exported(work.case.model, work.case.inputs)
    except Exception as error:
        return f"{NO_ORIGINAL}: {_said(error)}"
    return reason


def exported(model: Any, inputs: Any) -> None:
    """Export a model for the sizes of these inputs and compare its outputs in ONNX Runtime."""
    sized = inputs if isinstance(inputs, dict | list | tuple) else (inputs,)
    with tempfile.TemporaryDirectory() as folder, random_state_kept(seed=0):
        export_onnx(model, sized, Path(folder) / "model.onnx")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def check_training(case: Case, result: Any) -> None:
    """One step of gradient descent on the squares of the outputs.

    Raises:
        Failure: no weight changes, or a weight is no longer finite.
    """
    model = copy.deepcopy(result.model).train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with random_state_kept(seed=0):
        try:
            found = results(call(model, case.inputs))
        except Exception:  # in training mode it wants targets, or more samples
            found = results(call(model.eval(), case.inputs))
    losses = [value.float().square().mean() for value in found if value.requires_grad and value.numel()]
    if not losses:
        raise Failure("no output has a gradient")
    torch.autograd.backward(sum(losses))
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    after = dict(model.named_parameters())
    if not any(not torch.equal(before[name], value) for name, value in after.items()):
        raise Failure("no weight changes")
    bad = [name for name, value in after.items() if not torch.isfinite(value).all()]
    if bad:
        raise Failure(f"weights are no longer finite: {', '.join(bad[:3])}")


def plain_outcome(work: Work) -> str:
    """What torch-pruning's own pruner makes of the model, which changes: "pass", or why not."""
    try:
        return _plain(work.case)
    except Exception as error:
        return _said(error)


def _plain(case: Case) -> str:
    import torch_pruning as tp

    model, inputs = case.model, case.inputs
    modules = dict(model.named_modules())
    ignored = [modules[name] for name, reason in traced(case).left_alone.items() if "output of the model" in reason]
    before, shapes = macs(model, inputs), [value.shape for value in outputs(model, inputs)]
    pruner = tp.pruner.BasePruner(
        model, inputs, tp.importance.GroupMagnitudeImportance(), pruning_ratio=0.5, ignored_layers=ignored
    )
    pruner.step()
    if [value.shape for value in outputs(model, inputs)] != shapes:
        return "outputs have other shapes"
    left = macs(model, inputs) / before
    return "pass" if left <= 0.75 else f"{left:.0%} of the multiply-accumulates are left"


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise `Late` once this much processor time is used, and every second from then on until somebody lets it out."""

    def stop(*_: Any) -> None:
        raise Late(late(seconds))

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def late(seconds: int) -> str:
    return f"no result in {seconds} s"


def figures(rows: list[Row]) -> Iterator[Line]:
    """What has run as lines of the data file."""
    for row in sorted(rows, key=lambda row: (row.package, row.model.lower())):
        yield {
            "package": row.package,
            "model": row.model,
            "outcome": row.outcome.partition(":")[0],
            "reason": shortened(row.outcome.partition(":")[2]),
            "macs_removed": f"{100 * row.macs_removed:.1f}",
            "channels_removed": f"{100 * row.channels_removed:.1f}",
            "largest_difference": f"{row.difference:.1g}",
            "seconds": f"{row.seconds:.1f}",
            "onnx": shortened(NO_ORIGINAL if row.onnx.startswith(NO_ORIGINAL) else row.onnx),
            "plain": "pass" if row.plain == "pass" else "fails" if row.plain else "",
            "plain_reason": shortened("" if row.plain == "pass" else row.plain),
            "commit": row.commit or "unknown",
        }


def totals(lines: list[Line]) -> Iterator[Line]:
    """The figures of each package, and of all, as lines of a data file; some lines may lack the later stages."""
    for package in [*dict.fromkeys(sorted(line["package"] for line in lines)), "all"]:
        mine = [line for line in lines if package in (line["package"], "all")]
        counts = Counter(line["outcome"] for line in mine)
        exports = [line["onnx"] for line in mine if line["onnx"] not in ("", NO_ORIGINAL, NO_COMPACT)]
        plain = [line["plain"] for line in mine if line["plain"]]
        yield {
            "package": package,
            "models": str(len(mine)),
            **{name: str(counts[outcome]) for name, outcome in OUTCOMES.items()},
            "share": f"{100 * counts['pass'] / len(mine):.1f}",
            "onnx_run": str(len(exports)),
            "onnx_passed": str(exports.count("pass")),
            "plain_run": str(len(plain)),
            "plain_passed": str(plain.count("pass")),
            "commit": " and ".join(sorted({commit for line in mine for commit in line["commit"].split(" and ")})),
        }


def shortened(text: str) -> str:
    return " ".join(text.split())[:240]


if __name__ == "__main__":
    sys.exit(main())
