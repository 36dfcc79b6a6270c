r"""Group Fisher: the change of the loss when a coupled channel's gate goes from 1 to 0, from gate gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from hfp.importance.batches import Forward, Loss, Pass, unwrapped
from hfp.importance.errors import CriterionError
from hfp.importance.gates import Rows, recording_gates
from hfp.importance.groups import Member, members, operations, root_name, width
from hfp.importance.state import untouched

FIRST_ORDERS = ("off", "signed", "absolute")


class GroupFisherImportance(tp.importance.Importance):
    r"""Score of channel `c`: \(\tfrac12 E_n v_{n,c}^2\), with \(v\) the gate's derivative summed over all readers of
    the channel.

    The second-order term of the loss in the gate, with the empirical Fisher of the gate (gradients at the true labels)
    for its curvature; all cross terms inside the channel are included, since readers are added up before squaring. `E`
    is the mean over samples. Source: Liu et al., "Group Fisher Pruning" (ICML 2021), eq. 8; gates as in Molchanov et
    al. (CVPR 2019).

    Cost: one forward and one backward to activations only, no weight gradients. Memory: one float per sample and
    channel read.

    first_order: adds a first-order term: "signed" \(-E v\), "absolute" \(E|v|\), "off" nothing.
    second_order: whether the term above is in the score.
    """

    def __init__(self, first_order: str = "off", second_order: bool = True) -> None:
        if first_order not in FIRST_ORDERS:
            raise CriterionError(f"first_order is one of {', '.join(FIRST_ORDERS)}, not {first_order!r}")
        if first_order == "off" and not second_order:
            raise CriterionError("with first_order off and second_order off there is no score left")
        self.first_order = first_order
        self.second_order = second_order
        self._batches: list[Rows] = []

    @property
    def samples(self) -> int:
        """How many samples have been accumulated."""
        return sum(len(next(iter(rows.values()))) for rows in self._batches)

    def reset(self) -> None:
        """Forget everything accumulated, for instance after pruning a step."""
        self._batches = []

    def accumulate(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss_fn: Loss,
        progress: bool = False,
        *,
        reduction: str = "mean",
        forward: Forward | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        """Add the gate gradients of the batches' samples; the model is run in evaluation mode and left as it was.

        batches: (inputs, target) pairs; inputs may be a tensor, a tuple or a dictionary. Other options: `Pass`.

        Raises:
            CriterionError: an empty loader, a loss that isn't finite or has no gradient, a model of other shapes than
                before.
        """
        model = unwrapped(model)
        run = Pass(loss_fn, reduction, forward, autocast, progress)
        collected = []
        with untouched(model, parameters_require_grad=False), recording_gates(model) as recorder:
            for batch, size in run.batches(batches, model):
                recorder.start(size)
                output = run.output(model, batch)
                (run.loss_sum(output, run.target(output, batch), size) * run.scale).backward()
                recorder.check()
                collected.append({key: value / run.scale for key, value in recorder.rows.items()})
        _check_same_shapes([*self._batches[-1:], *collected])
        self._batches += collected

    def merge(self, other: GroupFisherImportance) -> None:
        """Add what another criterion of the same model has accumulated on other samples.

        Raises:
            CriterionError: when the other's layers have other shapes.
        """
        _check_same_shapes([*self._batches[-1:], *other._batches])
        self._batches += other._batches

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor:
        """Scores of the group's channels, `[width]`, in units of the loss of one sample.

        Raises:
            CriterionError: nothing accumulated, a model pruned since, or a group that no accumulated layer reads.
        """
        gate = self.gate_gradients(group)
        score = gate.new_zeros(gate.shape[1])
        if self.second_order:
            score += gate.square().mean(0) / 2
        if self.first_order != "off":
            score += gate.abs().mean(0) if self.first_order == "absolute" else -gate.mean(0)
        return score

    def gate_gradients(self, group: Any) -> Tensor:
        """`v` of a coupled group, `[samples, width]`, summed over all layers that read its channels."""
        if not self._batches:
            raise CriterionError("nothing has been accumulated; call accumulate(model, batches, loss_fn) first")
        readers, writers, mixers = [], [], []
        for member in members(group):
            if isinstance(member.layer, (nn.LayerNorm, nn.GroupNorm)):
                mixers.append(member)
            elif member.direction == "in":
                readers.append(member)
            elif isinstance(member.layer, nn.Linear):
                writers.append(member)
        gate = self._sum(group, readers, "in")
        if _is_attention(group):
            # q·k is one product, but its gate shows up at q and again at k; that of v at v and again at its reader.
            gate = (gate + self._sum(group, writers, "out")) / 2
        elif not readers:
            if not writers:
                raise CriterionError(f"no layer reads the channels of {root_name(group)!r}: put it into ignored_layers")
            gate = self._sum(group, writers, "out")
        return gate + self._sum(group, mixers, "out")

    def _sum(self, group: Any, parts: list[Member], side: str) -> Tensor:
        columns = width(group)
        total = []
        for rows in self._batches:
            first = next(iter(rows.values()))
            gate = first.new_zeros(len(first), columns)
            for member in parts:
                member.add_to(gate, self._rows_of(rows, member, side))
            total.append(gate)
        return torch.cat(total)

    def _rows_of(self, rows: Rows, member: Member, side: str) -> Tensor:
        found = rows.get((member.name, side))
        if found is None:
            raise CriterionError(f"layer {member.name!r} never ran while accumulating; is this the same model?")
        if int(member.indices.max()) >= found.shape[1]:
            raise CriterionError(
                f"layer {member.name!r} had {found.shape[1]} channels while accumulating and has more now; "
                "is this the same model?"
            )
        return found


def _is_attention(group: Any) -> bool:
    return any("softmax" in name.lower() or "scaleddotproduct" in name.lower() for name in operations(group))


def _check_same_shapes(batches: list[Rows]) -> None:
    for earlier, later in zip(batches, batches[1:], strict=False):
        for key in earlier.keys() & later.keys():
            if earlier[key].shape[1] != later[key].shape[1]:
                raise CriterionError(
                    f"layer {key[0]!r} has {later[key].shape[1]} channels and had {earlier[key].shape[1]} in what is "
                    "accumulated already; call reset() after pruning the model"
                )
