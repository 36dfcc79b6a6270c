"""Differential privacy of a client's whole data, at the server (McMahan et al., ICLR 2018, arXiv 1710.06963).

The server clips every client's change, embedded into the full model, to one length over all entries. It adds the
changes up, adds Gaussian noise to every entry that is trained, and divides by a fixed number of clients. A divisor that
depended on how many clients hold an entry would change what one client can do to the sum. The method then sees one
update that covers the full model, so that masks and scores follow from noised values alone. Batch-norm statistics are a
second release.

What is protected is the global model, and whatever is computed from it. The server itself sees every client's update,
and the run's records hold every client's loss.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from hfp.errors import InputError
from hfp.federation.privacy_account import Privacy
from hfp.methods import Method, MethodContext, ServerState, Task, Update
from hfp.reconstruct import IndexMap
from hfp.seeds import generator

State = Mapping[str, Tensor]


def check_private(method: Method) -> None:
    """Refuse a method whose next state depends on more than the clients' submodels.

    Raises:
        InputError: the method also reads other tensors, the losses or the choices of its clients.
    """
    if method.extra_tensor_prefixes or method.reads_losses or not method.tells_entries:
        raise InputError(
            f"{method.name} can't run privately: its state follows from more than the clients' submodels; "
            "use ca-hfp, fedavg or another method that averages"
        )


def private_update(
    privacy: Privacy,
    context: MethodContext,
    state: ServerState,
    updates: Sequence[Update],
    expected: int,
    seed: int,
    steps: int,
) -> Update:
    """Make one noised update of the full model out of a round's updates.

    Args:
        privacy: clip length and noise.
        context: names of the parameters that clients train; all other tensors keep their global values.
        state: the server's state that the tasks were cut from.
        updates: the round's updates, at least one.
        expected: how many clients a round asks, the fixed divisor.
        seed: of the noise, with the round; whoever knows it can take the noise off again.
        steps: how many local steps the update says it took. It is not what clients took, which tells of their data.

    Returns:
        An update as of one client that holds everything.
    """
    total = {name: torch.zeros_like(state.weights[name], dtype=torch.float64) for name in context.trained}
    for update in updates:
        sent = [name for name in context.trained if name in update.reply.tensors]
        changes = {name: _change(update, name) for name in sent if update.reply.tensors[name].numel()}
        share = clipping(changes.values(), privacy.clip)
        for name, change in changes.items():
            update.task.index_map.tensors[name].add(share * change, total[name])
    drawn = generator(seed, "privacy", state.round)
    noised = _noised(total, privacy.noise * privacy.clip, expected, drawn)
    tensors = context.shared(
        {name: tensor + noised[name].to(tensor) if name in noised else tensor for name, tensor in state.weights.items()}
    )
    first = updates[0]
    reply = dataclasses.replace(first.reply, tensors=tensors, steps=steps, loss=0.0, variance=None)
    index_map = IndexMap.identity(context.model)
    task = Task(context.groups.plan({}), index_map, state.weights)
    return dataclasses.replace(first, task=task, reply=reply)


def private_statistics(
    privacy: Privacy, before: State, statistics: Iterable[State], expected: int, random: torch.Generator
) -> dict[str, Tensor]:
    """Release noised batch-norm statistics: the mean of the clients' clipped differences from the current ones.

    Args:
        privacy: `statistics_clip` and noise.
        before: the current statistics, by name.
        statistics: every client's.
        expected: how many clients there are, the fixed divisor.
        random: what draws the noise.
    """
    total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in before.items()}
    for own in statistics:
        changes = {name: own[name].double() - before[name].double() for name in total}
        share = clipping(changes.values(), privacy.statistics_clip)
        for name, change in changes.items():
            total[name] += share * change
    noised = _noised(total, privacy.noise * privacy.statistics_clip, expected, random)
    released = {name: before[name].double() + change for name, change in noised.items()}
    return {
        name: (value.clamp(min=1e-3) if name.endswith("running_var") else value).to(before[name])
        for name, value in released.items()
    }


def clipping(changes: Iterable[Tensor], most: float) -> float:
    """Give the factor, at most 1, that makes the changes together no longer than `most`."""
    length = math.sqrt(sum(float(change.double().square().sum()) for change in changes))
    return 1.0 if length <= most else most / length


def _change(update: Update, name: str) -> Tensor:
    return update.reply.tensors[name].double() - update.task.tensors[name].double()


def _noised(total: Mapping[str, Tensor], deviation: float, divisor: int, random: torch.Generator) -> dict[str, Tensor]:
    return {
        name: (tensor + deviation * torch.randn(tensor.shape, generator=random, dtype=torch.float64).to(tensor.device))
        / divisor
        for name, tensor in total.items()
    }
