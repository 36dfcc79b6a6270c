"""FjORD: nested widths, one of which is drawn for every local step (arXiv 2102.13451)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from hfp.costs.macs import TRAINING_FACTOR
from hfp.methods.blocks.mean import MeanCollector
from hfp.methods.blocks.selection import keep_window
from hfp.methods.interface.base import Method
from hfp.methods.interface.client_context import ClientContext
from hfp.methods.interface.registry import register
from hfp.methods.interface.values import Client, MethodContext, Reply, ServerState, Task
from hfp.reconstruct import Coupling, IndexMap, Plan, TensorMap
from hfp.settings import SEVERAL, setting
from hfp.training.local_step import Objective


@register
@dataclass(frozen=True)
class FjORD(Method):
    """FjORD draws a width ``p`` of at most ``p_max = 1 - ratio`` for each local step and trains that prefix.

    The draw is uniform over ``p_max`` and those of `widths` that are below it. A step has no gradient for entries
    outside its prefix, which momentum still moves. Entries are averaged over the clients that hold them, weighted by
    samples. Every width has batch-norm statistics of its own; those of ``p_max`` are sent back.

    With a `distillation` ``α`` above 0, a step of a narrower width also trains ``p_max`` by cross-entropy. The narrow
    loss is then ``1 - α`` times its cross-entropy plus ``α T²`` times the divergence from the wide model's logits at
    temperature ``T``. Such a step costs both passes.
    """

    name: ClassVar[str] = "fjord"
    source: ClassVar[str] = "Horvath et al., NeurIPS 2021, arXiv 2102.13451"
    summary: ClassVar[str] = "nested submodels: every local step draws a width up to the client's own"

    widths: Sequence[float] = setting(
        (0.2, 0.4, 0.6, 0.8, 1.0),
        "A step draws one of these shares of the channels, or the client's own share.",
        kind=float,
        shape=SEVERAL,
        within="(0, 1]",
    )
    distillation: float = setting(
        0.0, "A narrower step learns from the client's widest model with this weight.", within="[0, 1]"
    )
    temperature: float = setting(1.0, "Distillation divides the logits by this temperature.", within="(0, 1000000]")

    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """Plan the prefix of the client's own width."""
        return self.sized(context.model, context.groups, client.ratio)

    def sized(self, model: nn.Module, groups: Coupling, ratio: float) -> Plan:
        """Keep the share ``1 - ratio``, rounded up."""
        return keep_window(groups, ratio)

    def train(self, local: ClientContext, task: Task) -> Reply:
        """Train the nested widths inside the client's model."""
        model = local.build(task)
        narrower = [width for width in sorted(set(self.widths)) if width < 1 - local.client.ratio - 1e-9]
        inner = [_Width.inside(local, task, model, width) for width in narrower]
        objective = Nested(self, inner, local.count(model), local.draws("widths"))
        result = local.fit(model, objective)
        return local.reply(model, result, training_macs=TRAINING_FACTOR * objective.macs)

    def collect(self, context: MethodContext, state: ServerState) -> MeanCollector:
        """Average every entry over the clients that hold it, by their samples."""
        return MeanCollector(state, rule="holders")


@dataclass(frozen=True, eq=False)
class _Width:
    """A narrower model inside a client's: its architecture and statistics, where its parameters lie, and its cost."""

    skeleton: nn.Module
    places: Mapping[str, TensorMap]
    macs: int

    @classmethod
    def inside(cls, local: ClientContext, task: Task, model: nn.Module, width: float) -> _Width:
        inner = local.groups.index_map(keep_window(local.groups, 1 - width))
        within = relative(task.index_map, inner)
        state = {
            name: place.restrict(tensor)
            for (name, tensor), place in zip(model.state_dict().items(), within.values(), strict=True)
        }
        skeleton = local.model_of(inner, state).train()  # the full model may be in evaluation mode
        return cls(skeleton, within, local.count(skeleton))

    def __call__(self, model: nn.Module, inputs: Tensor) -> Tensor:
        parameters = {name: self.places[name].restrict(value) for name, value in model.named_parameters()}
        return functional_call(self.skeleton, parameters, (inputs,))


class Nested(Objective):
    """Cross-entropy at a width drawn for every batch; `macs` counts the forward passes so far."""

    def __init__(self, method: FjORD, inner: Sequence[_Width], macs: int, random: torch.Generator) -> None:
        self._method, self._inner, self._widest, self._random = method, inner, macs, random
        self.macs = 0

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over a batch."""
        drawn = int(torch.randint(len(self._inner) + 1, (), generator=self._random))
        if drawn == len(self._inner):
            self.macs += self._widest * len(labels)
            return super().loss(model, inputs, labels)
        width, share = self._inner[drawn], self._method.distillation
        self.macs += width.macs * len(labels)
        narrow = width(model, inputs)
        loss = functional.cross_entropy(narrow, labels)
        if not share:
            return loss
        self.macs += self._widest * len(labels)
        wide = model(inputs)
        return functional.cross_entropy(wide, labels) + (1 - share) * loss + share * self._divergence(narrow, wide)

    def _divergence(self, narrow: Tensor, wide: Tensor) -> Tensor:
        temperature = self._method.temperature
        student = functional.log_softmax(narrow / temperature, dim=1)
        teacher = functional.log_softmax(wide.detach() / temperature, dim=1)
        return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def relative(outer: IndexMap, inner: IndexMap) -> dict[str, TensorMap]:
    """Return where the entries that `inner` keeps lie in the compact tensors of `outer`, which keeps them too."""
    return {
        name: TensorMap(place.compact_shape, tuple(map(_positions, place.kept, inner.tensors[name].kept)))
        for name, place in outer.tensors.items()
    }


def _positions(outer: Tensor | None, inner: Tensor | None) -> Tensor | None:
    if outer is None or inner is None:
        return inner
    return torch.searchsorted(outer, inner)
