"""Does every criterion score every model? Models of the zoo against all criteria that read data.

For each model, two batches run through it, and each criterion scores its coupled groups. The outcome is

- "scores": every group got one finite score per channel,
- "refused": a group got none, with a sentence that names a layer, a parameter or the output, and a way out,
- "failed": anything else, such as a crash, a number that is not finite, or a refusal that does not help.

Then `hfp.prune` removes half of the multiply-accumulates by one of the criteria that scored.

    python examples/benchmarks/zoo_criteria.py --results zoo --sample 80 --data examples/benchmarks/zoo_criteria.csv

Each model runs in its own process, one thread, one after the other. Results are JSON lines; a second start goes on
where the first one stopped. The packages come with `pip install "hfp[zoo]"`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch
import zoo_models
from data_files import Line, commit, put
from torch import Tensor, nn
from torch.nn import functional
from zoo import Failure, alone, check_masked, check_round_trip, limited, other_inputs, seeded, shortened, warm_up
from zoo_models import Case, Make, catalogue

import hfp
from hfp.importance import CriterionError, create, describe, names
from hfp.layers.calling import call, random_state_kept, results
from hfp.reconstruct import Coupling

CRITERIA = tuple(name for name in names() if describe(name).needs == "data")
CLASSES = 5
"""How many class scores the outputs of a model are made into."""
SECONDS = 60
"""Processor time that one criterion may take with one model."""
WAYS_OUT = re.compile(r"register_layer|ignored_layers|take |choose another|checkpoint with|call |accumulate with")
TABLES = {
    "text encoder": "ENCODERS", "text decoder": "DECODERS", "mixture of experts": "MIXTURES",
    "state space": "STATE_SPACE", "encoder and decoder": "ENCODER_DECODERS", "vision": "PICTURES", "video": "VIDEOS",
    "audio": "WAVES",
}  # fmt: skip
"""Kind of a model of transformers -> the table of `zoo_models` that lists it."""


@dataclass(frozen=True)
class Row:
    """What one criterion made of one model.

    Args:
        package: where the model is from.
        model: its name in the zoo.
        kind: what kind of model of this package it is.
        criterion: the criterion's name, or "budget" for the pruning to a budget.
        outcome: "scores", or "refused" or "failed" with where and why.
        groups: how many coupled groups the model has.
        scored: how many of them got scores.
        seconds: processor time.
        commit: what it was run with.
    """

    package: str
    model: str
    kind: str
    criterion: str
    outcome: str
    groups: int = 0
    scored: int = 0
    seconds: float = 0.0
    commit: str = ""


def main() -> int:
    """Run the models that have not run yet, and write what has run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder for the JSON lines")
    parser.add_argument("--only", nargs="*", help="run models whose package/name contains one of these")
    parser.add_argument("--sample", type=int, default=80, help="run this many models of all kinds, always the same")
    parser.add_argument("--again", action="store_true", help="run them even if they have run before")
    parser.add_argument("--retry", action="store_true", help="run those again of which something failed")
    parser.add_argument("--timeout", type=int, default=300, help="seconds of processor time for one model")
    parser.add_argument("--data", type=Path, help="write the figures of what has run to this data file")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
    warm_up()
    arguments.results.mkdir(parents=True, exist_ok=True)
    lines = arguments.results / "zoo_criteria.jsonl"
    known, state = read(lines), commit()
    chosen = drawn(arguments.sample, arguments.only)
    for name, make in sorted(chosen, key=lambda each: not each[0].startswith(("transformers/", "diffusers/"))):  # small
        before = known.get(name, [])
        failed = any(row.outcome.startswith("failed") for row in before)
        if before and not arguments.again and not (arguments.retry and failed):
            continue
        rows, reason = alone(partial(examined, name, make, state), arguments.timeout)
        if reason:
            rows.append(Row(*name.split("/"), kind_of(name, make), "all", f"failed: {reason}", commit=state))
        with lines.open("a") as file:
            file.write(json.dumps([asdict(row) for row in rows]) + "\n")
        print(f"{name:60} {sum(row.seconds for row in rows):6.1f} s", flush=True)
        for row in rows:
            if row.outcome not in ("scores", "pass"):
                print(f"    {row.criterion:18} {row.scored}/{row.groups} {row.outcome[:400]}", flush=True)
    if arguments.data:
        rows = [row for name, found in read(lines).items() if name in catalogue() for row in found]
        put(arguments.data, ("package", "model", "criterion"), figures(rows))
        put(arguments.data.with_stem(f"{arguments.data.stem}_totals"), ("criterion",), totals(rows))
    return 0


def read(lines: Path) -> dict[str, list[Row]]:
    """The latest rows of every model."""
    found = map(json.loads, lines.read_text().splitlines()) if lines.exists() else ()
    rows = [[Row(**row) for row in each] for each in found]
    return {f"{each[0].package}/{each[0].model}": each for each in rows}


def drawn(count: int, only: Collection[str] | None = None) -> list[tuple[str, Make]]:
    """Models of every kind in turn, in an order that is drawn at random and always the same."""
    if only:
        return [(name, make) for name, make in catalogue().items() if any(part in name for part in only)]
    kinds: dict[str, list[tuple[str, Make]]] = defaultdict(list)
    for name, make in random.Random(0).sample(sorted(catalogue().items(), key=lambda each: each[0]), len(catalogue())):
        kinds[f"{name.partition('/')[0]}: {kind_of(name, make)}"].append((name, make))
    turns = zip_longest(*(kinds[kind] for kind in sorted(kinds)))
    return [each for each in chain.from_iterable(turns) if each is not None][:count]


def kind_of(name: str, make: Make) -> str:
    """What kind of model of its package this is."""
    package, _, model = name.partition("/")
    if package == "transformers":
        found = [kind for kind, table in TABLES.items() if model in getattr(zoo_models, table)]
        return found[0] if found else "several inputs"
    return {"_segmentation": "segmentation", "_detection": "detection", "_flow": "optical flow", "_clip": "video"}.get(
        getattr(getattr(make, "func", make), "__name__", ""), "images"
    )


def examined(name: str, make: Make, state: str) -> Iterator[Row]:
    """What each criterion makes of a model, and what pruning to a budget gives."""
    package, _, model = name.partition("/")
    row = partial(Row, package, model, kind_of(name, make), commit=state)
    try:
        case = seeded(make)
        coupling = Coupling.trace(case.model, case.inputs)
        batches = batches_of(case)
    except Exception as error:
        yield row("all", f"failed: {_line(error)}")
        return
    scoring = []
    for criterion in CRITERIA:
        start, scored = time.process_time(), list[str]()
        outcome = outcome_of(criterion, case, coupling, batches, scored)
        seconds = round(time.process_time() - start, 1)
        yield row(criterion, outcome, len(coupling.names), len(scored), seconds)
        scoring += [criterion] if outcome == "scores" else []
    if scoring:
        start = time.process_time()
        chosen = scoring[sum(map(ord, name)) % len(scoring)]
        outcome = budget_outcome(chosen, case, batches)
        yield row("budget", outcome, seconds=round(time.process_time() - start, 1))


def batches_of(case: Case) -> list[tuple[Any, Tensor]]:
    """Two batches of inputs, each with a class per sample."""
    size = samples_in(case.inputs)
    return [
        (inputs, (torch.arange(size) + place) % CLASSES)
        for place, inputs in enumerate((case.inputs, other_inputs(case.inputs)))
    ]


def samples_in(inputs: Any) -> int:
    """How many samples the inputs hold."""
    first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    first = first[0] if isinstance(first, tuple) else first
    return len(first)


def outcome_of(name: str, case: Case, coupling: Coupling, batches: list[tuple[Any, Tensor]], scored: list[str]) -> str:
    """What a criterion makes of a model; the groups that got scores are added to `scored`."""
    try:
        with limited(SECONDS), random_state_kept(seed=0):
            return _scores(accumulated(name, case, batches), case.model, coupling, scored)
    except CriterionError as error:
        return _refusal(error, case.model)
    except BaseException as error:  # a limit that is reached is one too
        return f"failed: {_line(error)}"


def accumulated(name: str, case: Case, batches: list[tuple[Any, Tensor]]) -> Any:
    """A criterion that has seen the batches."""

    def forward(model: nn.Module, batch: Any) -> Tensor:
        output, inner = _run(model, batch[0])
        scores = class_scores(output, len(batch[1]))
        return scores if scores.requires_grad else class_scores(inner, len(batch[1]))

    def loss(scores: Tensor, target: Any) -> Tensor:
        return functional.cross_entropy(scores, target if isinstance(target, Tensor) else target[1])

    criterion = create(name)
    criterion.accumulate(case.model, batches, loss, forward=forward)
    return criterion


def _run(model: nn.Module, inputs: Any) -> tuple[Any, list[Any]]:
    """What a model gives, and what its parts give: a detector that finds nothing has no output to differentiate."""
    inner: list[Any] = []
    handles = [part.register_forward_hook(lambda _, args, output: inner.append(output)) for part in model.children()]
    try:
        return call(model, inputs), inner
    finally:
        for handle in handles:
            handle.remove()


def class_scores(output: Any, size: int) -> Tensor:
    """`[size, CLASSES]`: random sums of all that a model gives for each sample."""
    if isinstance(output, tuple | list) and len(output) == size > 1 and not isinstance(output[0], Tensor):
        return torch.cat([class_scores(each, 1) for each in output])  # detections, a list for each sample
    total = torch.zeros(size, CLASSES)
    for value in results(output):
        if value.requires_grad and value.numel() and value.dim() and len(value) % size == 0:
            flat = value.float().reshape(size, -1)
            signs = torch.randn(flat.shape[1], CLASSES, generator=torch.Generator().manual_seed(0))
            total = total + flat @ signs / flat.shape[1] ** 0.5
    return total


def _scores(criterion: Any, model: nn.Module, coupling: Coupling, scored: list[str]) -> str:
    groups, refusals = coupling.groups_of(model), list[str]()
    for name in coupling.names:
        try:
            scores = criterion(groups(name))
        except CriterionError as error:
            refusals.append(_refusal(error, model))
            continue
        if scores.shape != (coupling.sizes[name],):
            return f"failed: {list(scores.shape)} scores for the {coupling.sizes[name]} channels of {name}"
        if not torch.isfinite(scores).all():
            return f"failed: the scores of {name} are not finite"
        scored.append(name)
    return min(refusals, default="scores")  # one that failed comes first


def _refusal(error: CriterionError, model: nn.Module) -> str:
    """A refusal, which counts as a failure where it does not say what is refused or what to do."""
    known = {name for name, _ in chain(model.named_modules(), model.named_parameters()) if name}
    quoted = re.findall(r"'([^']+)'", str(error))
    if not known.intersection(quoted):
        return f"failed: names no layer: {_line(error)}"
    return f"{'refused' if WAYS_OUT.search(str(error)) else 'failed: no way out'}: {shortened(str(error))}"


def budget_outcome(name: str, case: Case, batches: list[tuple[Any, Tensor]]) -> str:
    """Whether half of the multiply-accumulates can be removed by a criterion."""
    direct = name not in ("group-kl", "group-loss", "sampled-fisher", "kronecker")  # these need class scores
    direct = direct and any(value.requires_grad and value.numel() for value in results(call(case.model, case.inputs)))
    given = {"importance": name, "data": batches, "loss_fn": squares}
    try:
        with random_state_kept(seed=0):
            chosen = given if direct else {"importance": accumulated(name, case, batches)}
            result = hfp.prune(case.model, case.inputs, hfp.Budget(macs=0.5), **chosen)
        check_round_trip(case, result)
        if not direct:  # a repair has changed the weights otherwise
            check_masked(case, result)
    except Failure as error:
        return f"failed: {name}: {error}"
    except Exception as error:
        known = isinstance(error, hfp.InputError | hfp.reconstruct.MapError)
        return f"{'refused' if known else 'failed'}: {name}: {_line(error)}"
    before, after = result.report.costs["macs"]
    return "pass" if after <= before / 2 else f"failed: {name}: {after / before:.0%} are left"


def squares(output: Any, target: Any) -> Tensor:
    """The mean square of all that a model gives."""
    found = [value.float().square().mean() for value in results(output) if value.requires_grad and value.numel()]
    return torch.stack(found).sum()


def figures(rows: list[Row]) -> Iterator[Line]:
    """What has run as lines of the data file."""
    for row in sorted(rows, key=lambda row: (row.package, row.model.lower(), row.criterion)):
        outcome, _, reason = row.outcome.partition(": ")
        yield {
            "package": row.package, "model": row.model, "kind": row.kind, "criterion": row.criterion,
            "outcome": outcome, "reason": shortened(reason), "groups": str(row.groups), "scored": str(row.scored),
            "seconds": f"{row.seconds:.1f}", "commit": row.commit,
        }  # fmt: skip


def totals(rows: list[Row]) -> Iterator[Line]:
    """How many models each criterion scored, as lines of a data file."""
    by_criterion: Mapping[str, list[Row]] = {
        name: [row for row in rows if row.criterion == name] for name in (*CRITERIA, "budget")
    }
    for name, mine in by_criterion.items():
        counts = Counter(row.outcome.partition(":")[0] for row in mine)
        yield {
            "criterion": name,
            "models": str(len(mine)),
            "scored": str(counts["scores"] + counts["pass"]),
            "refused": str(counts["refused"]),
            "failed": str(counts["failed"]),
            "commit": " and ".join(sorted({row.commit for row in mine})),
        }


def _line(error: BaseException) -> str:
    return shortened(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.exit(main())
