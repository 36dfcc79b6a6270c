"""The base of criteria that use gate gradients.

It accumulates them, and adds up those of the layers that read a coupled group's channels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from hfp.importance.bases.from_data import FromData
from hfp.importance.bases.joint import joint_scores
from hfp.importance.capture.batches import Pass
from hfp.importance.capture.gates import GateKey, GateRecorder, recording_gates
from hfp.importance.capture.moments import effect
from hfp.importance.capture.one_sample import one_sample
from hfp.importance.capture.state import untouched
from hfp.importance.errors import CriterionError
from hfp.importance.groups.members import GroupLayer, scoring, width
from hfp.importance.groups.roles import channels_at, is_attention, roles_of, statistics_side
from hfp.importance.options import check_options


@dataclass(frozen=True)
class GateBatch:
    """The gate gradients of one batch.

    Args:
        rows: the gradients `[samples, passes, channels]` by (layer's name, "in" or "out"). There is one pass per
            quantity that is differentiated.
        totals: the sum of a layer's input over samples and positions, `[channels]`, and how many those are, by the
            layer's name.
        refused: why a layer has no gradient per sample, by the layer's name.
        samples: how many samples the batch has.
        kept: what the criterion keeps of the model's output, `[samples, ...]`, by a name of its own.
        passes_on: the parameters that are multiplied with nothing, so that channels pass on along them.
    """

    rows: dict[GateKey, Tensor]
    totals: dict[str, tuple[Tensor, int]]
    refused: dict[str, str]
    samples: int
    kept: Mapping[str, Tensor]
    passes_on: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Quantities:
    """What a criterion differentiates on one batch, and what it keeps of the model's output.

    Args:
        scalars: sums over the batch's samples, which are differentiated one after the other.
        kept: tensors `[samples, ...]` by name, which `GatedImportance.kept` gives back.
    """

    scalars: list[Tensor]
    kept: Mapping[str, Tensor] = field(default_factory=dict)


def _batch_in(state: Mapping[str, Tensor], place: str) -> GateBatch:
    """Return the batch that a criterion's `state` holds at a place.

    Raises:
        KeyError: something is missing, or of a kind that there isn't.
        ValueError: a name is too short.
    """
    parts: dict[str, dict[str, Tensor]] = {"rows": {}, "total": {}, "count": {}, "kept": {}, "passes": {}}
    for key, value in state.items():
        number, kind, *rest = key.split("/", 2)
        if number == place and rest:
            parts[kind][rest[0]] = value
    sides = [(key.split("/", 1), rows) for key, rows in parts["rows"].items()]
    totals = {name: (total, int(parts["count"][name])) for name, total in parts["total"].items()}
    rows = {(name, side): values for (side, name), values in sides}
    return GateBatch(rows, totals, {}, int(state[f"{place}/samples"]), parts["kept"], frozenset(parts["passes"]))


def joined(parts: list[GateBatch]) -> GateBatch:
    """Return the measurements of several batches as those of one."""
    widths = {key: (rows.shape[1:], rows) for part in parts for key, rows in part.rows.items()}
    rows = {
        key: torch.cat([part.rows.get(key, like.new_zeros(part.samples, *shape)) for part in parts])
        for key, (shape, like) in widths.items()
    }
    totals: dict[str, tuple[Tensor, int]] = {}
    for name, (total, count) in (item for part in parts for item in part.totals.items()):
        before, counted = totals.get(name, (torch.zeros_like(total), 0))
        totals[name] = before + total, counted + count
    refused = {name: reason for part in parts for name, reason in part.refused.items()}
    kept = {name: torch.cat([part.kept[name] for part in parts]) for name in parts[0].kept}
    return GateBatch(rows, totals, refused, sum(part.samples for part in parts), kept, parts[0].passes_on)


class GatedImportance(FromData[list[GateBatch]], tp.importance.Importance):  # type: ignore[misc]
    """A criterion that scores a coupled channel by the gradients of its gate, sample by sample.

    It keeps one float per sample, pass and channel read, or two with `repaired`.

    Args:
        joint: False (default) scores the removal of a channel alone. True scores what its removal adds to that of all
            channels of its group that score lower, in a greedy order (`joint_scores`). This is for removing many
            channels at once.
        repaired: False (default) scores the removal of the whole channel. True scores the removal of what the channel
            adds to its mean, for use where a repair keeps the mean: biases absorb it, or batch-norm statistics are
            taken anew. The mean is that of each reader's input over the accumulated samples and positions.
    """

    def __init__(self, joint: bool = False, repaired: bool = False) -> None:
        check_options(joint=joint, repaired=repaired)
        self.joint = joint
        self.repaired = repaired
        self._batches: list[GateBatch] = []

    @abstractmethod
    def _cost(self, change: Tensor) -> Tensor:
        """Return the cost `[n]` of changes `[samples, passes, n]` of the quantities differentiated."""

    @abstractmethod
    def _quantities(self, output: Any, target: Any, size: int, run: Pass) -> Quantities:
        """Return what to differentiate, and what to keep, of the output for a batch of `size` samples."""

    @property
    def samples(self) -> int:
        """Return the number of samples accumulated so far."""
        return sum(batch.samples for batch in self._batches)

    def reset(self) -> None:
        """Forget everything accumulated, for instance after a pruning step."""
        self._batches = []

    def _measure(self, model: nn.Module, batches: Iterable[Any], run: Pass) -> list[GateBatch]:
        collected = []
        with untouched(model, parameters_require_grad=False), recording_gates(model, self.repaired) as recorder:
            for batch, size in run.batches(batches, model):
                recorder.probe(partial(run.output, model), one_sample(batch, 0, size))
                found = self._batch(model, batch, size, run, recorder)
                if found.refused and size > 1:
                    found = self._one_by_one(model, batch, size, run, recorder) or found
                collected.append(found)
        return collected

    def _batch(self, model: nn.Module, batch: Any, size: int, run: Pass, recorder: GateRecorder) -> GateBatch:
        recorder.start(size)
        output = run.output(model, batch)
        quantities = self._quantities(output, run.target(output, batch, size), size, run)
        rows = _differentiate(quantities.scalars, recorder, run.scale)
        kept = {name: tensor.detach() for name, tensor in quantities.kept.items()}
        return GateBatch(rows, recorder.totals, recorder.refused, size, kept, recorder.passes_on)

    def _one_by_one(
        self, model: nn.Module, batch: Any, size: int, run: Pass, recorder: GateRecorder
    ) -> GateBatch | None:
        """Measure each sample in a pass of its own, where layers have rows that are not those of the samples.

        Returns:
            What was measured; None where the model does not run on one sample.
        """
        try:
            return joined(
                [self._batch(model, one_sample(batch, place, size), 1, run, recorder) for place in range(size)]
            )
        except Exception:
            return None

    @property
    def _measured(self) -> list[GateBatch]:
        return self._batches

    def state(self) -> dict[str, Tensor]:
        """Return everything accumulated as tensors by name, to send or to save; `load` takes it."""
        found = {}
        for place, batch in enumerate(self._batches):
            found[f"{place}/samples"] = torch.tensor(batch.samples)
            found |= {f"{place}/kept/{name}": tensor for name, tensor in batch.kept.items()}
            found |= {f"{place}/rows/{side}/{name}": rows for (name, side), rows in batch.rows.items()}
            found |= {f"{place}/passes/{name}": torch.tensor(True) for name in batch.passes_on}
            for name, (total, count) in batch.totals.items():
                found |= {f"{place}/total/{name}": total, f"{place}/count/{name}": torch.tensor(count)}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Add a `state`, as `merge` adds another criterion.

        Raises:
            CriterionError: `state` is not the state of such a criterion, or it is of another model.
        """
        places = {key.split("/")[0] for key in state}
        if not state or any(not place.isdigit() or f"{place}/samples" not in state for place in places):
            raise CriterionError(f"this is not the state of a {type(self).__name__}")
        try:
            batches = [_batch_in(state, place) for place in sorted(places, key=int)]
        except (KeyError, ValueError) as error:
            raise CriterionError(f"this is not the state of a {type(self).__name__}: {error}") from error
        self._add(batches)

    @scoring
    def __call__(self, group: Any) -> Tensor:
        """Return the scores of the group's channels, `[width]`.

        Raises:
            CriterionError: nothing has been accumulated, the model has been pruned since, or no accumulated layer reads
                the group.
        """
        gate = self.gate_gradients(group)
        return joint_scores(gate, self._cost) if self.joint else self._cost(gate)

    @scoring
    def gate_gradients(self, group: Any) -> Tensor:
        """Return `v` of a coupled group, `[samples, passes, width]`, summed over all layers that read its channels.

        Raises:
            CriterionError: nothing has been accumulated, the model has been pruned since, or no accumulated layer reads
                the group.
        """
        if not self._batches:
            raise CriterionError("nothing has been accumulated; call accumulate(model, batches, loss_fn) first")
        passes_on = frozenset().union(*(batch.passes_on for batch in self._batches))
        readers, writers, mixers = roles_of(group, passes_on)
        gate = self._sum(group, readers or writers, "in" if readers else "out")
        if readers and is_attention(group):
            # The product q·k has its gate at q and again at k; v has its gate at v and again at its reader.
            gate = (gate + self._sum(group, writers, "out")) / 2
        for member in mixers:
            gate = gate + self._sum(group, [member], statistics_side(member))
        return gate - self._mean_part(readers, gate) if self.repaired else gate

    def kept(self, name: str) -> Tensor:
        """Return what was kept of the model's outputs under a name, `[samples, ...]`, in the order of
        `gate_gradients`.
        """
        return torch.cat([batch.kept[name] for batch in self._batches])

    def _mean_part(self, readers: list[GroupLayer], gate: Tensor) -> Tensor:
        """Return what the means of the channels contribute to `v`.

        This is a reader's mean input times the sum of its gradient.
        """
        part = torch.zeros_like(gate)
        for member in readers:
            totals = [batch.totals[member.name] for batch in self._batches if member.name in batch.totals]
            mean = sum(total for total, _ in totals) / max(sum(count for _, count in totals), 1)
            sums = torch.cat([_rows_of(batch, member, "in-sum") for batch in self._batches])
            member.add_to(part, effect(torch.as_tensor(mean, device=sums.device), sums))
        return part

    def _sum(self, group: Any, parts: list[GroupLayer], side: str) -> Tensor:
        total = []
        for batch in self._batches:
            rows = [_rows_of(batch, member, side) for member in parts]
            gate = rows[0].new_zeros(*rows[0].shape[:2], width(group))
            for member, values in zip(parts, rows, strict=True):
                member.add_to(gate, values)
            total.append(gate)
        return torch.cat(total)

    def _add(self, batches: list[GateBatch]) -> None:
        for earlier, later in zip([*self._batches[-1:], *batches], batches, strict=False):
            for key in earlier.rows.keys() & later.rows.keys():
                before, now = earlier.rows[key].shape[1:], later.rows[key].shape[1:]
                if before != now:
                    raise CriterionError(
                        f"layer {key[0]!r} has {now[1]} channels and {now[0]} passes, and had {before[1]} and "
                        f"{before[0]} in what is accumulated already; call reset() after pruning"
                    )
        self._batches = [*self._batches, *batches]


def _differentiate(scalars: list[Tensor], recorder: GateRecorder, scale: float) -> dict[GateKey, Tensor]:
    passes = []
    for place, scalar in enumerate(scalars):
        (scalar * scale).backward(retain_graph=place + 1 < len(scalars))
        passes.append(recorder.take())
    return {key: torch.stack([rows[key] for rows in passes], 1) / scale for key in passes[0]}


def _rows_of(batch: GateBatch, member: GroupLayer, side: str) -> Tensor:
    found = batch.rows.get((member.name, side))
    if found is None and member.name in batch.refused:
        raise CriterionError(batch.refused[member.name])
    if found is None:
        raise CriterionError(
            f"layer {member.name!r} never ran while accumulating; is this the same model? If it is, put its group into "
            "ignored_layers"
        )
    channels = channels_at(member, side)
    if channels != found.shape[2]:
        raise CriterionError(
            f"layer {member.name!r} has {channels} channels and had {found.shape[2]} while accumulating: "
            "call reset() and accumulate() after pruning"
        )
    return found
