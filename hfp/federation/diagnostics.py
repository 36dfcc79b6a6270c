"""Measures in every round what the theory of arXiv 2603.12591 is about: variances, perturbation and coverage."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from hfp.federation.observer import Observer
from hfp.federation.setup import Federation
from hfp.importance import Variation
from hfp.layers.products import PRODUCTS, weight_dims
from hfp.methods import ServerState, State, TrainedPart, Update
from hfp.methods.blocks.pseudo_gradients import PseudoGradients
from hfp.methods.blocks.real import check_real
from hfp.seeds import generator, seeded
from hfp.training.batch_norm import batch_statistics

if TYPE_CHECKING:
    from hfp.federation.rounds import Outcome

SAMPLE = 256
RECENT = 5


@dataclass(frozen=True)
class Diagnostics:
    """One round's figures. In Lemma 1, ``σ²`` is bounded by `gradient_variance`, and ``ζ²`` by `dissimilarity`.

    gradient_variance: variance of a local step's gradient around the mean of the client's steps, mean over clients.
    dissimilarity: ``Σ_i Σ_k p_k (g_k - ḡ)_i²`` of the clients' pseudo-gradients, over those that hold entry ``i``.
    perturbation: ``‖e_t‖²``, ``e_t = Σ_k p_k (1 - m_k) w_t``.
    predicted: ``-Σ q g w + ½ Σ q² h w²`` (eq. 14), with the estimates that earlier rounds gave; None in the first.
    actual: ``F(w_t - e_t) - F(w_t)`` on a sample of the clients' images, with batch statistics.
    overlap: entries that two clients both hold over those that either does, mean over pairs; None with one client.
    coverage: by coupled group, the share of channels that somebody trained this round; `recent` in the last five.
    """

    gradient_variance: float
    dissimilarity: float
    perturbation: float
    predicted: float | None
    actual: float
    overlap: float | None
    coverage: Mapping[str, float]
    recent: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**dataclasses.asdict(self), "coverage": dict(self.coverage), "recent": dict(self.recent)}


@dataclass(frozen=True)
class DiagnosticsState:
    """What diagnostics need of earlier rounds: the estimates, and which channels the last ones `trained`."""

    variation: Variation
    trained: Sequence[Mapping[str, Tensor]] = ()


class DiagnosticsObserver(Observer):
    """Measures `Diagnostics` in every round; it keeps three models' memory, and the clients' index maps."""

    def __init__(self, federation: Federation) -> None:
        check_real("a run with diagnostics", federation.context)
        self._federation = federation
        self._variation, self._trained = Variation(estimator="fisher", smoothing=0.5), []  # type: ignore[var-annotated]
        self._images, self._labels = _sample(federation)
        self._watch: _Watch | None = None

    @property
    def observer_state(self) -> DiagnosticsState:
        """What earlier rounds gave."""
        return DiagnosticsState(self._variation, tuple(self._trained))

    def restore(self, observer_state: DiagnosticsState) -> None:
        """Go on from what earlier rounds gave."""
        self._variation, self._trained = observer_state.variation, list(observer_state.trained)

    def round_began(self, state: ServerState) -> None:
        """Watch the updates of a new round."""
        self._watch = _Watch(self._federation, state)

    def update_came(self, state: ServerState, update: Update) -> None:
        """Take note of one client's update."""
        assert self._watch is not None
        self._watch.add(update)

    def figures(self, outcome: Outcome) -> Mapping[str, Diagnostics]:
        """Return the round's diagnostics, or nothing where no update came."""
        watch, self._watch = self._watch, None
        return {"diagnostics": self._report(watch)} if watch is not None and watch.samples else {}

    def _report(self, watch: _Watch) -> Diagnostics:
        weights, gradients = watch.parameters, watch.gradients
        missing = {name: 1 - coverage for name, coverage in gradients.coverage().items()}
        perturbation = {name: missing[name] * weight for name, weight in weights.items()}
        predicted = _predicted(self._variation, missing, weights)
        actual = self._loss(watch.state.weights, perturbation) - self._loss(watch.state.weights, {})
        self._variation = self._variation.update(
            gradient_sum=gradients.gradient(), square_sum=gradients.square(), coverage=gradients.coverage()
        )
        trained = trained_channels(self._federation, gradients.coverage())
        self._trained = [*self._trained, trained][-RECENT:]
        return Diagnostics(
            gradient_variance=watch.variance(),
            dissimilarity=_dissimilarity(gradients),
            perturbation=sum(float(part.square().sum()) for part in perturbation.values()),
            predicted=predicted,
            actual=actual,
            overlap=watch.overlap(),
            coverage={name: float(mask.float().mean()) for name, mask in trained.items()},
            recent={
                name: float(torch.stack([round[name] for round in self._trained]).any(0).float().mean())
                for name in trained
            },
        )

    def _loss(self, weights: State, less: Mapping[str, Tensor]) -> float:
        """Compute the sample's cross-entropy at `weights` minus `less`; batch-norm uses the sample's own statistics."""
        device, model = self._federation.device, self._federation.model
        state = {name: value - less[name] if name in less else value.clone() for name, value in weights.items()}
        state = {name: value.to(device) for name, value in state.items()}
        drawn = seeded(device, self._federation.experiment.seed, "test")  # both losses are of the same draws
        with torch.no_grad(), batch_statistics(model), drawn:
            scores = functional_call(model, state, (self._images.to(device),))
        return float(functional.cross_entropy(scores, self._labels.to(device)))


class _Watch:
    """What the updates of one round say, added up one at a time."""

    def __init__(self, federation: Federation, state: ServerState) -> None:
        self.state = state
        self.parameters = {name: state.weights[name] for name in federation.context.parameters}
        self.gradients = PseudoGradients(self.parameters)
        self.samples = 0.0
        self._federation = federation
        self._held: list[TrainedPart] = []
        self._variance = 0.0

    def add(self, update: Update) -> None:
        trained_part = self._federation.method.trained_part(self._federation.context, self.state, update)
        weight, reply = update.client.samples, update.reply
        self.gradients.add(trained_part, weight, update.step_size * reply.steps)
        self._held.append(dataclasses.replace(trained_part, before={}, after={}))
        self._variance += weight * (reply.variance or 0.0)
        self.samples += weight

    def variance(self) -> float:
        """Return the mean of the clients' gradient variances."""
        return self._variance / self.samples

    def overlap(self) -> float | None:
        """Return the mean over pairs of clients of the share of entries that both hold."""
        pairs = [_overlap(one, other, self.parameters) for one, other in combinations(self._held, 2)]
        return sum(pairs) / len(pairs) if pairs else None


def trained_channels(federation: Federation, coverage: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Find which channels have an entry in their group's root layer that some client held.

    Groups whose root isn't a layer with one row of weights for each channel are left out.
    """
    groups, trained = federation.context.groups, {}
    for name, size in groups.sizes.items():
        weight = coverage.get(f"{name}.weight")
        if weight is None:
            continue
        layer = federation.model.get_submodule(name)
        rows = weight.movedim(weight_dims(layer)[0], 0) if isinstance(layer, PRODUCTS) else weight
        if len(rows) == size:
            trained[name] = (rows.reshape(size, -1) > 0).any(1)
    return trained


def _predicted(variation: Variation, missing: State, weights: State) -> float | None:
    """Compute eq. 14 at ``e = q w``."""
    gradient, curvature = variation.gradient, variation.curvature
    if gradient is None or curvature is None:
        return None
    total = 0.0
    for name, weight in weights.items():
        gone = missing[name] * weight
        total += float((curvature[name] * gone.square() / 2 - gradient[name] * gone).sum())
    return total


def _dissimilarity(gradients: PseudoGradients) -> float:
    """Sum the spread of the clients' pseudo-gradients over all entries."""
    total, mean, square = 0.0, gradients.gradient(), gradients.square()
    for name, coverage in gradients.coverage().items():
        share = torch.where(coverage > 0, coverage, torch.ones_like(coverage))
        total += float((square[name] / share - (mean[name] / share).square()).clamp(min=0).sum())
    return total


def _overlap(one: TrainedPart, other: TrainedPart, names: Iterable[str]) -> float:
    """Divide the number of entries that both hold by the number that either holds."""
    shared = joint = 0
    for name in names:
        both = _shared(one, other, name)
        shared += both
        joint += _shared(one, one, name) + _shared(other, other, name) - both
    return shared / joint


def _shared(one: TrainedPart, other: TrainedPart, name: str) -> int:
    if name in one.active or name in other.active:
        return int((_mask(one, name) & _mask(other, name)).sum())
    mine, theirs = one.index_map.tensors[name], other.index_map.tensors[name]
    kept = zip(mine.shape, mine.kept, theirs.kept, strict=True)
    return math.prod(_common(size, first, second) for size, first, second in kept)


def _mask(trained_part: TrainedPart, name: str) -> Tensor:
    """Return which entries of a tensor were trained, boolean and of the full shape, on the processor."""
    place, active = trained_part.index_map.tensors[name], trained_part.active.get(name)
    return place.mask() if active is None else place.embed(active, torch.zeros(place.shape, dtype=torch.bool))


def _common(size: int, one: Tensor | None, other: Tensor | None) -> int:
    if one is None:
        return size if other is None else len(other)
    return len(one) if other is None else int(torch.isin(one, other).sum())


def _sample(federation: Federation) -> tuple[Tensor, Tensor]:
    """Draw a part of every client's data in proportion, as normalised images and labels."""
    total = sum(len(shard.labels) for shard in federation.shards)
    images, labels = [], []
    for client, shard in enumerate(federation.shards):
        count = min(len(shard.labels), math.ceil(SAMPLE * len(shard.labels) / total))
        random = generator(federation.experiment.seed, "diagnostics", client)
        chosen = torch.randperm(len(shard.labels), generator=random)[:count]
        images.append(shard.normalise(shard.images[chosen]))
        labels.append(shard.labels[chosen])
    return torch.cat(images), torch.cat(labels)
