"""``hfp run``: one federated experiment, shown while it runs and kept in a folder."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hfp.costs.devices import PROFILES
from hfp.data import datasets, schemes
from hfp.errors import InputError
from hfp.federation.experiment import BUDGET_LIMITS, LATE_REPLIES, Experiment
from hfp.federation.participation import asked_clients
from hfp.federation.records import IN_TIME, ClientRecord, Run
from hfp.federation.rounds import Outcome, full_cost, rounds
from hfp.federation.setup import Federation, set_up
from hfp.federation.threads import use_threads
from hfp.methods import methods
from hfp.results.folder import RunFolder, default_folder
from hfp.results.plots import save_curves, save_diagnostics
from hfp.results.report import round_line, run_document, run_table
from hfp.training.batch_norm import POLICIES

INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hfp run``; their defaults are those of `Experiment`."""
    add_settings(parser)
    add = parser.add_argument
    add("--threads", type=int, metavar="N", help="of the processor (default: one for small models, else PyTorch's)")
    add("--option", dest="options", action="append", type=option, metavar="NAME=VALUE", help="an option of the method")
    add("--out", type=Path, metavar="FOLDER", help="an empty or new folder (default: a fresh one under runs/)")
    add("--json", action="store_true", help="print one JSON document; progress goes to standard error")


def add_settings(parser: argparse._ActionsContainer, without: Collection[str] = ()) -> None:
    """Declare an argument for every field of `Experiment` that is a plain setting, but for those flags in `without`."""
    known = {method.name for method in methods()}
    defaults = {entry.name: entry.default for entry in dataclasses.fields(Experiment)}

    def add(flag: str, **settings: Any) -> None:
        if flag in without:
            return
        argument = parser.add_argument(flag, **settings)
        default = defaults.get(argument.dest)
        if isinstance(default, (str, int, float)) and not isinstance(default, bool):
            argument.help = f"{argument.help or ''} (default: {default})".strip()

    add("--method", help=f"one of {', '.join(sorted(known))}; `hfp methods` tells more")
    add("--dataset", help=f"one of {', '.join(datasets())}")
    add("--data-root", metavar="PATH", help="folder with the data set's files, or any tree of images (imagefolder)")
    add("--download", action="store_true", default=None, help="download the data set into --data-root")
    add("--train-images", type=int, metavar="N", help="keep N training images; the test set stays whole")
    add("--image-size", type=int, metavar="PIXELS", help="side of an image folder's images")
    add("--model", help="one of hfp's own models, or any classifier of timm or torchvision")
    add("--clients", type=int, metavar="K", help="how many")
    add("--rank", type=int, help="0 to 3: the pair of ratios that the clients have, half of them each")
    add(
        "--ratio", type=_ratios, metavar="R[,R…]", help="share of channels removed: one, or one per client; over --rank"
    )
    add("--budget", action="append", type=limit, metavar="KIND=MOST", help=_kinds("instead of ratios", BUDGET_LIMITS))
    add(
        "--profile",
        type=_names,
        metavar="NAME[,NAME…]",
        help=f"devices, dealt out in turn: {', '.join(PROFILES)}, or MACS:DOWN:UP a second",
    )
    add("--participation", type=float, metavar="SHARE", help="of the clients that a round asks")
    add("--dropout", type=float, metavar="CHANCE", help="that a client never answers")
    add("--deadline", type=float, metavar="SECONDS", help="simulated; replies after it are late")
    add("--late", help=_kinds("late replies", LATE_REPLIES))
    add(
        "--replan", type=int, metavar="N", help="rounds that a client keeps its plan, 0: while the method's phase lasts"
    )
    add("--partition", help=f"how data is dealt out: {', '.join(schemes())}")
    add("--alpha", type=float, help="Dirichlet concentration; small is uneven")
    add("--rounds", type=int, metavar="T", help="how many")
    add("--epochs", type=int, metavar="E", help="local epochs a round")
    add("--head-start", type=float, metavar="N", help="times as many in the first round; 1: all rounds alike")
    add("--head-start-decay", type=float, metavar="SHARE", help="times the last round's epochs are the next one's")
    add("--batch-size", type=int, metavar="B", help="images a local step")
    add("--learning-rate", type=float, metavar="LR", help="of local SGD")
    add("--momentum", type=float, help="of local SGD")
    add("--weight-decay", type=float, help="of local SGD")
    add("--augment", action="store_true", default=None, help="shift and mirror training images")
    add(
        "--diagnostics",
        action="store_true",
        default=None,
        help="measure variance, overlap, coverage … each round",
    )
    add("--evaluate", type=int, metavar="N", help="test the global model every N rounds and in the end")
    add("--personal", type=int, metavar="N", help="test clients' own models every N rounds and in the end; 0: never")
    add("--amp", action="store_true", default=None, help="compute in bfloat16 where it is safe, on GPUs that have it")
    add("--channels-last", action="store_true", default=None, help="lay images out for half precision on GPUs")
    add("--batch-norm", help=_kinds("evaluation's statistics", POLICIES))
    add("--seed", type=int, help="decides data, weights, batches and masks")
    add("--device", help="cpu, cuda, cuda:1, mps …")


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment; 0 when it finished, 130 when it was interrupted (what was done is kept)."""
    experiment = experiment_from(arguments)
    folder = RunFolder(arguments.out if arguments.out is not None else default_folder(experiment))
    console = Console(stderr=arguments.json, highlight=False)
    federation = set_up(experiment)
    use_threads(arguments.threads, federation)
    folder.configure(experiment)
    history, state, interrupted = [], None, False
    with _Display(console, federation) as display:
        try:
            for outcome in rounds(federation, on_client=display.client_done):
                history.append(outcome.record)
                state = outcome.state.weights
                folder.append(outcome.record)
                display.round_done(outcome)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if state is not None:
                folder.save_model(experiment, state)
    if state is None:
        console.print("stopped before the first round ended; nothing to keep")
        return INTERRUPTED
    cost = full_cost(federation, len(history))
    _close(Run(experiment, tuple(history), state, cost), folder, console, arguments.json)
    if interrupted:
        console.print(f"stopped after {len(history)} of {experiment.rounds} rounds")
    return INTERRUPTED if interrupted else 0


def experiment_from(arguments: argparse.Namespace) -> Experiment:
    """The experiment that the arguments describe; what isn't given keeps `Experiment`'s default."""
    return Experiment(**given_settings(arguments))


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Experiment` that the arguments give."""
    names = {entry.name for entry in dataclasses.fields(Experiment)}
    given: dict[str, Any] = {n: v for n, v in vars(arguments).items() if n in names and v is not None}
    pairs: dict[str, Any] = {name: dict(given[name]) for name in ("options", "budget") if name in given}
    return {**given, **pairs}


def _close(run: Run, folder: RunFolder, console: Console, as_json: bool) -> None:
    console.print()
    console.print(run_table(run))
    try:
        save_curves(run, folder.picture)
        if run.experiment.diagnostics:
            save_diagnostics(run, folder.diagnostics)
    except InputError as missing:
        console.print(f"no picture: {missing}", soft_wrap=True, markup=False)
    console.print(f"written to {folder.path}", soft_wrap=True, markup=False)
    if as_json:
        json.dump(run_document(run, str(folder.path)), sys.stdout)
        sys.stdout.write("\n")


class _Display:
    """Live progress: a bar over rounds, one over the round's clients, and a line for every finished round."""

    def __init__(self, console: Console, federation: Federation) -> None:
        self._console = console
        self._experiment = federation.experiment
        self._fleet = federation.context.clients
        self._parameters = sum(parameter.numel() for parameter in federation.model.parameters())
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )

    def __enter__(self) -> _Display:
        experiment = self._experiment
        shares = ", ".join(f"{ratio:.0%}" for ratio in sorted({client.ratio for client in self._fleet}))
        about = (
            experiment.method,
            experiment.dataset,
            f"{experiment.model} ({self._parameters / 1e3:,.1f} K parameters)",
            f"{experiment.clients} clients remove {shares} of their channels",
            _dealt(experiment),
            _local_epochs(experiment),
            f"seed {experiment.seed}",
        )
        self._console.print(" · ".join(about), soft_wrap=True)
        self._rounds = self._progress.add_task("rounds", total=experiment.rounds, note="")
        self._clients = self._progress.add_task(
            "clients", total=asked_clients(experiment.participation, experiment.clients), note=""
        )
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def client_done(self, record: ClientRecord) -> None:
        ended = f"loss {record.loss:.3f}" if record.status == IN_TIME else record.status
        note = f"client {record.client}: {record.ratio:.0%} removed, {record.samples} images, {ended}"
        self._progress.update(self._clients, advance=1, note=note)

    def round_done(self, outcome: Outcome) -> None:
        self._progress.console.print(round_line(outcome.record, self._experiment.rounds), soft_wrap=True)
        accuracy = outcome.record.accuracy
        if accuracy is not None:
            self._progress.update(self._rounds, note=f"accuracy {accuracy:.1f} %")
        self._progress.update(self._rounds, advance=1)
        self._progress.update(self._clients, completed=0)


def _dealt(experiment: Experiment) -> str:
    return f"alpha {experiment.alpha:g}" if experiment.partition == "dirichlet" else experiment.partition


def _local_epochs(experiment: Experiment) -> str:
    first, last = experiment.epochs_in(0), experiment.epochs_in(experiment.rounds - 1)
    return f"{f'{first} to ' if first > last else ''}{last} local epoch{'s' * (first > 1)} a round"


def _ratios(text: str) -> float | tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    return values[0] if len(values) == 1 else values


def option(text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` as a pair; the value is JSON where it can be, else text."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE; found {text!r}")
    try:
        return name.replace("-", "_"), json.loads(value)
    except json.JSONDecodeError:
        return name.replace("-", "_"), value


def limit(text: str) -> tuple[str, float]:
    """``KIND=MOST`` as a pair of a name and a number."""
    name, value = option(text)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise argparse.ArgumentTypeError(f"expected KIND=NUMBER; found {text!r}")
    return name, value


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _kinds(what: str, kinds: Mapping[str, str]) -> str:
    return f"{what}: " + "; ".join(f"{name}, {text}" for name, text in kinds.items())


_ratios.__name__ = "share or shares"  # argparse names the type in its message
