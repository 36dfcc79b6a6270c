"""Pure functions from a federation to the lines that say, before the first round, what a run assumes."""

from __future__ import annotations

import torch

from hfp.costs.machine import device_name
from hfp.errors import counted
from hfp.federation.experiment import Experiment
from hfp.federation.setup import Federation
from hfp.federation.threads import cores
from hfp.models.source import RANDOM
from hfp.training.batch_norm import has_statistics


def first_lines(federation: Federation, threads: int, jobs: int = 1) -> tuple[str, ...]:
    """Write the lines about a run's data, model, clients and machine.

    Args:
        federation: the run, set up.
        threads: how many threads of the processor each client is trained with.
        jobs: how many clients train at once, in processes of their own.
    """
    experiment = federation.experiment
    return (
        f"data     {federation.dataset.description}",
        f"clients  {_clients(federation)}",
        f"model    {experiment.model_name}: {_parameters(federation):,} parameters, {weights_origin(federation)}",
        f"method   {experiment.method}{_options(experiment)}: {counted(experiment.rounds, 'round')}, "
        f"{_local_epochs(experiment)}",
        f"machine  {_machine(federation.device)}, {_workers(threads, jobs)}; seed {experiment.seed}",
        *_crowded(threads, jobs),
        *_statistics(federation),
    )


def weights_origin(federation: Federation) -> str:
    """Say where the initial weights come from."""
    drawn = f" drawn by seed {federation.experiment.seed}" if federation.origin == RANDOM else ""
    return f"{federation.origin}{drawn}"


def _clients(federation: Federation) -> str:
    experiment, clients = federation.experiment, federation.context.clients
    least, most = (pick(client.samples for client in clients) for pick in (min, max))
    images = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{len(clients)} of {images} images ({experiment.dealt}){_removed(federation)}"


def _removed(federation: Federation) -> str:
    removed = federation.method.removes(federation.context)
    return f"; they remove {removed}" if removed else ""


def _workers(threads: int, jobs: int) -> str:
    each = counted(threads, "thread")
    return each if jobs == 1 else f"{jobs} jobs of {each}"


def _crowded(threads: int, jobs: int) -> tuple[str, ...]:
    """Warn that threads wait for each other, where the jobs together have more of them than there are cores."""
    share = max(1, cores() // jobs)
    if jobs == 1 or threads <= share:
        return ()
    return (
        f"cores    {jobs} jobs of {counted(threads, 'thread')} share {counted(cores(), 'core')}: --threads {share} "
        "is faster; the last digits of results depend on threads, and not on jobs",
    )


def _statistics(federation: Federation) -> tuple[str, ...]:
    """Say that a test asks all clients, where a round asks some of them alone."""
    experiment = federation.experiment
    everyone = experiment.batch_norm_policy == "reestimate" and has_statistics(federation.model)
    if not everyone or experiment.participation == 1:
        return ()
    return (
        f"tests    each asks all {experiment.clients} clients for batch-norm statistics; batch_norm=participants asks "
        "the round's alone",
    )


def _parameters(federation: Federation) -> int:
    return sum(parameter.numel() for parameter in federation.model.parameters())


def _options(experiment: Experiment) -> str:
    given = ", ".join(f"{name}={value}" for name, value in experiment.options.items())
    return f" ({given})" if given else ""


def _local_epochs(experiment: Experiment) -> str:
    first, last = experiment.epochs_in(0), experiment.epochs_in(experiment.rounds - 1)
    return f"{f'{first} to ' if first > last else ''}{counted(last, 'local epoch')} per round"


def _machine(device: torch.device) -> str:
    return f"{device} ({device_name(device)})" if device.type == "cuda" else str(device)
