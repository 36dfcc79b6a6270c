"""Whether a reply can be used: checked before anything of it reaches the global model, whoever ran the client.

No reply of one client may end the run, or make the global model anything but finite. A reply is checked against its
task and against what its client can have done; the state that comes of a round is checked once more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from hfp.costs.macs import TRAINING_FACTOR, parameters
from hfp.costs.payload import packed_bytes
from hfp.errors import InputError, printable
from hfp.federation.setup import Federation
from hfp.importance import CriterionError
from hfp.methods import Client, Collector, Reply, ServerState, State, Update
from hfp.reconstruct import IndexMap, MapError, TensorMap

FLOAT32_MAX = torch.finfo(torch.float32).max
PLAUSIBLE = 4
"""A client may report this many times the cost of training the full model: methods may train a second model beside."""

FARTHEST = 10.0
"""Standard deviations of a layer's inputs that a client's batch-norm statistics may lie from those of the others.

Clients of digits that hold two classes each, of two images and more, lie up to 0.5 from each other.
"""

EXACT = 2**53
"""Sums of whole numbers are taken in float64, which is exact below this."""

_LONGEST = 300  # characters of a reason that is recorded


class ReplyCheck:
    """Checks the replies of one federation's clients, and the states that come of them."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation

    def check_start(self) -> None:
        """Refuse a model that can't be sent, or starts from values with which every client's reply would be refused.

        Raises:
            InputError: naming the dtype, or the tensor and what is wrong with it.
        """
        try:
            packed_bytes(initial := self._federation.initial)
        except InputError as error:
            raise InputError(f"the model's state can't be sent to clients: {error}") from error
        try:
            check_tensors(initial, self.largest)
        except InputError as error:
            raise InputError(
                f"the model can't be trained from its initial state: {error}. Register a buffer that is no part of "
                "what is learned, such as a mask of -inf, with persistent=False"
            ) from error

    def problem_of(self, state: ServerState, update: Update) -> str:
        """Why an update can't be used, in a sentence; empty when it can."""
        try:
            self._check_work(state, update)
            check_values(update.reply, self.largest)
            self._federation.method.check_reply(self._federation.context, state, update)
            self._check_tables(state, update)
        except (InputError, MapError) as error:
            return _one_line(str(error))
        except Exception as error:  # whatever a reply makes a method's own check do, the run goes on
            return _one_line(f"the reply can't be checked: {type(error).__name__}: {error}")
        return ""

    def statistics_problem(self, statistics: State) -> str:
        """Why a client's batch-norm statistics can't be used, in a sentence; empty when they can."""
        try:
            check_tensors(statistics, self.largest)
        except InputError as error:
            return _one_line(str(error))
        return ""

    def outlying_statistics(self, found: Sequence[tuple[Client, State]]) -> dict[int, str]:
        """Which clients' batch-norm statistics can't be used beside the others', with a sentence for each.

        A layer's means may be as far from the clients' median, in root mean square, as `FARTHEST` standard deviations,
        and the standard deviation no larger than that; both are measured in the median client's standard deviation.
        So what one liar can do is bounded. With fewer than three clients nobody can tell who lies. Nothing is refused
        in a private run, where no client's part may depend on another's.

        Args:
            found: every client's own statistics, each of which passed `statistics_problem`.
        """
        if len(found) < 3 or self._federation.experiment.privacy is not None:
            return {}
        distances = {name: _distances(name, found) for name in found[0][1] if name.endswith("running_mean")}
        if not distances:
            return {}
        farthest = torch.stack(list(distances.values())).max(0)
        layers = list(distances)
        return {
            client.index: f"{layers[layer]} is {distance:.3g} standard deviations from the other clients'; at most "
            f"{FARTHEST:g} is taken"
            for (client, _), distance, layer in zip(
                found, farthest.values.tolist(), farthest.indices.tolist(), strict=True
            )
            if distance > FARTHEST
        }

    def next_state(self, state: ServerState, collector: Collector) -> tuple[ServerState, str]:
        """The state that a collector makes, and an empty text; or the old one, a round later, and why it stays.

        A state is refused where a value in it, or in what the method remembers, is not finite, and where a weight is so
        large that no reply could hold it.
        """
        try:
            after = collector.finish()
            check_tensors(after.weights, self.largest)
            _check_finite(after.method_state)
        except (InputError, MapError, CriterionError) as error:
            problem = _one_line(f"the round is dropped and the model stays as it was: {error}")
            return dataclasses.replace(state, round=state.round + 1), problem
        return after, ""

    @cached_property
    def largest(self) -> float:
        """The largest absolute value of a weight, ``B``, with which no sum over clients overflows in float32.

        Of all that methods compute, a channel's score ``Σ h w²`` over at most ``P`` weights grows most: ``h`` is a sum
        of squared pseudo-gradients ``((w_k - w) / d)² ≤ (2 B / d)²`` with the weight of ``N`` samples, where ``d`` is
        the length of one step. So ``4 N P B⁴ / d²`` is to be at most float32's largest number.
        """
        samples = max(sum(client.samples for client in self._federation.context.clients), 1)
        entries = max(parameters(self._federation.model), 1)
        step = min(self._federation.training.step_size, 1.0)
        return float((FLOAT32_MAX * step**2 / (4 * samples * entries)) ** 0.25)

    def _check_work(self, state: ServerState, update: Update) -> None:
        """Refuse figures that the client can't have come to with the samples it holds.

        Raises:
            InputError: naming the figure and what was expected.
        """
        reply, method, training = update.reply, self._federation.method, self._federation.training
        full = self._federation.full
        epochs = self._federation.experiment.epochs_in(state.round)
        own = dataclasses.replace(training, epochs=epochs).steps(update.client.samples)
        most = method.most_steps(state, own)
        _within("steps", reply.steps, min(own, 1), most)
        _within("samples", reply.samples, reply.steps, reply.steps * training.batch_size)
        _within("parameters", reply.parameters, 1, full.parameters)
        _within("forward_macs", reply.forward_macs, 1, full.forward_macs)
        most_macs = PLAUSIBLE * TRAINING_FACTOR * full.forward_macs * reply.samples
        _within("training_macs", reply.training_macs, min(reply.samples, most_macs), most_macs)
        memory = update.client.device.memory
        most_bytes = PLAUSIBLE * full.peak_bytes
        _within("peak_bytes", reply.peak_bytes, 1, most_bytes if memory is None else min(most_bytes, int(memory)))

    def _check_tables(self, state: ServerState, update: Update) -> None:
        """Refuse indices and masks that are not those that were sent: training changes none, and all clients use them.

        Raises:
            InputError: naming the table.
        """
        if not self._tables:
            return
        part = self._federation.method.trained_part(self._federation.context, state, update)
        for name in self._tables & part.after.keys():
            if not torch.equal(part.before[name], part.after[name]):
                raise InputError(
                    f"{name} must come back as it was sent, since training does not change indices or masks"
                )

    @cached_property
    def _tables(self) -> frozenset[str]:
        """Names of the model's tables of whole numbers or of yes and no; a single whole number is a count."""
        state = self._federation.model.state_dict().items()
        return frozenset(n for n, t in state if t.numel() > 1 and not t.is_floating_point() and not t.is_complex())


def check_values(reply: Reply, largest: float) -> None:
    """Refuse figures below 0 and values that are not finite, or larger than `largest`.

    A loss is computed in float32, so that one beyond float32's largest number is none.

    Raises:
        InputError: naming the figure or tensor.
    """
    for name in ("steps", "samples", "parameters", "forward_macs", "training_macs", "peak_bytes"):
        if getattr(reply, name) < 0:
            raise InputError(f"{name} must be at least 0; found {getattr(reply, name)}")
    for name in ("loss", "variance"):
        value = getattr(reply, name)
        if value is not None and not (math.isfinite(value) and abs(value) <= FLOAT32_MAX):
            raise InputError(f"{name} must be finite and at most {FLOAT32_MAX:.3g}; found {value:.3g}")
    if reply.variance is not None and reply.variance < 0:
        raise InputError(f"variance must be at least 0; found {reply.variance:.3g}")
    check_tensors(reply.tensors, largest)


def check_tensors(tensors: State, largest: float = FLOAT32_MAX) -> None:
    """Refuse values that are not finite or larger than `largest`, variances and counts below 0, and inexact counts.

    Raises:
        InputError: naming the tensor and what is wrong with it.
    """
    # the least and the greatest value tell, and finding them is one quick pass
    for name, (least, greatest) in _ends({n: _real(t) for n, t in tensors.items() if _has_ends(t)}).items():
        if not (math.isfinite(least) and math.isfinite(greatest)):
            raise InputError(f"{name} holds values that are not finite")
        limit = largest if tensors[name].is_floating_point() or tensors[name].is_complex() else EXACT
        if max(-least, greatest) > limit:
            raise InputError(f"{name} must hold values up to {limit:.3g}; found {max(least, greatest, key=abs):.3g}")
        for ending, what in (("running_var", "variances"), ("num_batches_tracked", "counts")):
            if name.endswith(ending) and least < 0:
                raise InputError(f"{name} must hold {what} of at least 0; found {least:.3g}")


def _ends(tensors: State) -> dict[str, tuple[float, float]]:
    """Return the least and the greatest value of each tensor; those of one dtype are read from the device at once."""
    alike: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name, tensor in tensors.items():
        alike.setdefault((tensor.dtype, tensor.device), []).append(name)
    found: dict[str, tuple[float, float]] = {}
    for names in alike.values():
        ends = torch.stack([end for name in names for end in tensors[name].aminmax()]).double().view(-1, 2)
        found.update(zip(names, map(tuple, ends.tolist()), strict=True))
    return {name: found[name] for name in tensors}


def _distances(name: str, found: Sequence[tuple[Client, State]]) -> Tensor:
    """Measure each client's distance from the others in one layer, in the median client's standard deviations.

    Channels whose inputs never vary count for nothing, because they have no scale of their own.

    Returns:
        Of a layer's means and its standard deviation the one that stands out more, `[clients]`.
    """
    means = torch.stack([own[name].double() for _, own in found])
    variances = torch.stack([own[name.removesuffix("mean") + "var"].double() for _, own in found])
    scale = _median(variances).sum()
    squares = torch.maximum((means - _median(means)).square().sum(1), variances.sum(1))
    return (squares / scale).sqrt() if scale > 0 else torch.zeros_like(squares)


def _median(values: Tensor) -> Tensor:
    """Return the lower median over the first dimension."""
    return values.sort(0).values[(len(values) - 1) // 2]


def _check_finite(memory: Any) -> None:
    """Refuse what a method remembers where a number in it is not finite.

    Raises:
        InputError: saying so.
    """
    numbers = list(_numbers_in(memory))
    tensors = {str(place): value for place, value in enumerate(numbers) if isinstance(value, Tensor) and value.numel()}
    floats = [value for value in numbers if isinstance(value, float)]
    if not all(map(math.isfinite, chain(floats, *_ends(tensors).values()))):
        raise InputError("what the method remembers holds values that are not finite")


def _numbers_in(value: Any) -> Iterator[Tensor | float]:
    """All tensors of real numbers and all floats in mappings, tuples, lists and dataclasses, however nested."""
    if isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point()):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _numbers_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _numbers_in(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, (type, IndexMap, TensorMap)):
        for entry in dataclasses.fields(value):
            yield from _numbers_in(getattr(value, entry.name))


def _has_ends(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and tensor.dtype != torch.bool


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _within(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        expected = f"{least}" if least == most else f"between {least} and {most}"
        raise InputError(f"{name} must be {expected}, by what the client holds; found {value}")


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))[:_LONGEST]
