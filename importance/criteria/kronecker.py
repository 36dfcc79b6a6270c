"""Score channels by Kronecker factors.

They give what removing channels together adds to the loss, with the curvature of a layer as two small factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from hfp.importance.bases.from_data import FromData
from hfp.importance.bases.joint import quadratic_joint_scores
from hfp.importance.capture.batches import Pass
from hfp.importance.capture.factors import Factors, as_matrix, exact, recording_factors
from hfp.importance.capture.logits import logits_of
from hfp.importance.capture.multiplied import passed_on
from hfp.importance.capture.one_sample import one_sample
from hfp.importance.capture.state import untouched
from hfp.importance.criteria.group_fisher import gauss_newton_root
from hfp.importance.errors import CriterionError
from hfp.importance.groups.members import GroupLayer, scoring, width
from hfp.importance.groups.roles import channels_at, is_attention, roles_of
from hfp.importance.options import check_options
from hfp.layers.products import PRODUCTS, groups_of

_PARTS = ("rows", "total", "square", "gradient")


@dataclass(frozen=True)
class Totals:
    """The factors of `samples` samples by layer, why a layer has none, and parameters that pass channels on."""

    samples: int
    factors: Mapping[str, Factors]
    refused: Mapping[str, str]
    passes_on: frozenset[str] = frozenset()

    def plus(self, other: Totals) -> Totals:
        """Return the totals of both sets of samples.

        Raises:
            CriterionError: they are of models with layers of other shapes.
        """
        for name in self.factors.keys() & other.factors.keys():
            before, now = ((one.square.shape, one.gradient.shape) for one in (self.factors[name], other.factors[name]))
            if before != now:
                raise CriterionError(
                    f"layer {name!r} has factors {[list(shape) for shape in now]} and had "
                    f"{[list(shape) for shape in before]} in what is accumulated already; call reset() after pruning"
                )
        added = {
            name: one.plus(other.factors[name]) if name in other.factors else one for name, one in self.factors.items()
        }
        return Totals(
            self.samples + other.samples,
            {**other.factors, **added},
            {**self.refused, **other.refused},
            self.passes_on | other.passes_on,
        )


class KroneckerImportance(FromData[Totals], tp.importance.Importance):  # type: ignore[misc]
    r"""Score channel `c` by \(\tfrac12 M_{cc} + \sum_{s \in S} M_{cs}\), what its removal adds to that of `S`.

    `S` are the channels of the group that score lower. \(M_{cc'} = \sum \sum_{i \in c,\, j \in c'} (W^T G W)_{ij}
    A_{ij}\). The outer sum runs over the convolution and linear layers that read the coupled group. The inner sum runs
    over the columns of a layer's weight `W` `[out, in * kernel]` that a channel has.

    \(\tfrac12 \sum_{c, c' \in S} M_{cc'}\) is, to second order, what taking the columns of `S` out of `W` adds to the
    loss, where the curvature of the layer's weights is \(A \otimes G\). \(A = E\, x x^T\) is the mean over samples and
    positions of what the kernel lies on. \(G = \tfrac1N \sum g g^T\), where `g` is the gradient at the layer's output
    and the sum runs over all positions of `N` samples. Channels that carry the same signal are cheap to remove alone
    and expensive to remove together. `A` holds how far they move together, which no criterion of single channels sees.

    Norms, activations and depthwise convolutions pass channels on. Channels that different groups of a convolution read
    are taken to be independent. Channels that no layer reads (queries and keys) count where a linear layer writes them,
    by \(E\, y y^T \circ G\) at its output. Where attention multiplies channels and a layer also reads them, the mean of
    both counts. A layer that ran on no rows (an expert that no token was sent to) adds nothing.

    Cost: one forward, one backward to the activations, and a product of each layer's inputs with themselves. This takes
    as long as two to four plain forward and backward passes. Memory: 8 bytes per pair of a layer's columns and per pair
    of its outputs, whatever the number of samples.

    Args:
        fisher: the quantity whose gradients `g` are. "gauss-newton" (default) takes `gauss_newton_root` with random
            signs, which gives the Gauss-Newton (and Fisher) factor of cross-entropy. It needs a classifier, and does
            not use the targets. "empirical" takes the loss at the true labels, and works for any loss.
        joint: True (default) scores as above. False scores a channel's removal alone, \(\tfrac12 M_{cc}\).
        repaired: True (default) scores the removal of what a channel adds to its mean, with the covariance for `A`.
            This is for use where a repair keeps the mean: biases absorb it, or batch-norm statistics are taken anew.
        seed: the seed of the signs, which are drawn sample after sample. Workers whose results are merged should have
            different seeds.

    Raises:
        CriterionError: the Fisher is unknown.

    Source: the factors are those of K-FAC (Martens and Grosse, ICML 2015, section 3) and, for convolutions, of Grosse
    and Martens, ICML 2016, eq. 32. EigenDamage (Wang et al., ICML 2019) uses them for structured pruning. The sum over
    a coupled group and the selection of channels together are this project's.

    >>> import torch
    >>> from hfp.importance import KroneckerImportance
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> batches = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    >>> criterion = KroneckerImportance()
    >>> criterion.accumulate(model, batches, torch.nn.functional.cross_entropy)
    >>> criterion.samples
    8
    """

    def __init__(self, fisher: str = "gauss-newton", joint: bool = True, repaired: bool = True, seed: int = 0) -> None:
        check_options("kronecker", fisher=fisher, joint=joint, repaired=repaired, seed=seed)
        self.fisher = fisher
        self.joint = joint
        self.repaired = repaired
        self._signs = np.random.default_rng(seed)
        self.reset()

    @property
    def samples(self) -> int:
        """Return the number of samples accumulated so far."""
        return self._totals.samples

    def reset(self) -> None:
        """Forget everything accumulated, for instance after a pruning step."""
        self._totals = Totals(0, {}, {})

    def _measure(self, model: nn.Module, batches: Iterable[Any], run: Pass) -> Totals:
        found = Totals(0, {}, {})
        with untouched(model, parameters_require_grad=False), recording_factors(model) as recorder:
            for batch, size in run.batches(batches, model):
                output = recorder.output(partial(run.output, model, batch))
                (self._scalar(output, run.target(output, batch, size), size, run) * run.scale).backward()
                factors, passes_on = recorder.take(run.scale), _passes_on(model, one_sample(batch, 0, size), run)
                found = found.plus(Totals(size, factors, recorder.refused, passes_on))
        return found

    @property
    def _measured(self) -> Totals:
        return self._totals

    def _add(self, measured: Totals) -> None:
        self._totals = self._totals.plus(measured)

    def state(self) -> dict[str, Tensor]:
        """Return everything accumulated as tensors by name, to send or to save; `load` takes it."""
        if self.samples == 0:
            return {}
        named = {
            f"{part}/{name}": torch.as_tensor(getattr(factors, part))
            for name, factors in self._totals.factors.items()
            for part in _PARTS
        }
        passes = {f"passes/{name}": torch.tensor(True) for name in self._totals.passes_on}
        return {"samples": torch.tensor(self.samples), **named, **passes}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Add a `state`, as `merge` adds another criterion.

        Raises:
            CriterionError: `state` is not the state of such a criterion, or it is of another model.
        """
        names = [key.removeprefix("rows/") for key in state if key.startswith("rows/")]
        passes = {key for key in state if key.startswith("passes/")}
        wanted = {f"{part}/{name}" for name in names for part in _PARTS} | passes
        if not names or wanted | {"samples"} != set(state):
            raise CriterionError(f"this is not the state of a {type(self).__name__}")
        factors = {
            name: Factors(
                int(state[f"rows/{name}"]),
                state[f"total/{name}"],
                state[f"square/{name}"],
                state[f"gradient/{name}"],
            )
            for name in names
        }
        passes_on = frozenset(key.removeprefix("passes/") for key in passes)
        self._add(Totals(int(state["samples"]), factors, {}, passes_on))

    @scoring
    def __call__(self, group: Any) -> Tensor:
        """Return the scores of the group's channels, `[width]`.

        Raises:
            CriterionError: nothing has been accumulated, the model has been pruned since, or a layer without factors
                reads the group.
        """
        matrix = self.matrix(group)
        return (quadratic_joint_scores(matrix) if self.joint else matrix.diagonal() / 2).to(_type_of(group))

    @scoring
    def matrix(self, group: Any) -> Tensor:
        """Return `M` of a coupled group, in float64, `[width, width]`.

        Raises:
            CriterionError: nothing has been accumulated, the model has been pruned since, or a layer without factors
                reads the group.
        """
        if self.samples == 0:
            raise CriterionError("nothing has been accumulated; call accumulate(model, batches, loss_fn) first")
        readers, writers, _ = roles_of(group, self._totals.passes_on)
        parts = [self._read(member) for member in readers]
        if not readers or is_attention(group):
            parts += [self._written(member) for member in writers]
        total = torch.zeros(width(group), width(group), dtype=torch.float64, device=parts[0][1].device)
        for member, part in parts:
            total.index_put_(
                (member.positions[:, None], member.positions), part[member.indices][:, member.indices], accumulate=True
            )
        return total / 2 if readers and is_attention(group) else total

    def _scalar(self, output: Any, target: Any, size: int, run: Pass) -> Tensor:
        if self.fisher == "empirical":
            return run.loss_sum(output, target, size)
        logits = logits_of(output, size)
        signs = torch.from_numpy(self._signs.integers(0, 2, (size, logits.shape[1]))) * 2.0 - 1.0
        return gauss_newton_root(logits, signs.to(logits))

    def _read(self, member: GroupLayer) -> tuple[GroupLayer, Tensor]:
        factors, matrix = self._of(member, "in"), as_matrix(member.layer)
        products = matrix.transpose(1, 2) @ (factors.gradient / self.samples) @ matrix * factors.moment(self.repaired)
        channels = channels_at(member, "in") // groups_of(member.layer)
        sums = products.unflatten(2, (channels, -1)).sum(3).unflatten(1, (channels, -1)).sum(2)
        return member, torch.block_diag(*sums)

    def _written(self, member: GroupLayer) -> tuple[GroupLayer, Tensor]:
        factors, matrix = self._of(member, "out"), as_matrix(member.layer)[0]
        moment = matrix @ factors.moment(True)[0] @ matrix.T
        if not self.repaired:
            bias: Any = member.layer.bias  # type: ignore[union-attr]
            mean = matrix @ (factors.total[0] / max(factors.rows, 1)) + (0 if bias is None else exact(bias.detach()))
            moment = moment + mean[:, None] * mean
        return member, moment * factors.gradient[0] / self.samples

    def _of(self, member: GroupLayer, side: str) -> Factors:
        layer: Any = member.layer
        if not isinstance(layer, PRODUCTS):
            raise CriterionError(
                f"layer {member.name!r} is a {type(layer).__name__}: only convolution and linear layers have "
                "Kronecker factors; take group-fisher, or put its group into ignored_layers"
            )
        found = self._totals.factors.get(member.name)
        if found is None and member.name in self._totals.refused:
            raise CriterionError(
                f"{self._totals.refused[member.name]}: take group-fisher, or put it into ignored_layers"
            )
        if found is None:
            raise CriterionError(
                f"layer {member.name!r} never ran by itself while accumulating: is this the same model? If it is, take "
                "group-fisher, or put its group into ignored_layers (torch's own attention calls no layers)"
            )
        shape = as_matrix(layer).shape
        if shape[2] != found.square.shape[2] or shape[1] != found.gradient.shape[2] or len(found.square) != shape[0]:
            raise CriterionError(
                f"layer {member.name!r} has {channels_at(member, side)} channels at its {side}put and had others while "
                "accumulating: call reset() and accumulate() after pruning"
            )
        return found


@torch.no_grad()
def _passes_on(model: nn.Module, sample: Any, run: Pass) -> frozenset[str]:
    """Return the parameters that one sample shows to be multiplied with nothing; none if the model can't run on it."""
    try:
        return passed_on(model, partial(run.output, model, sample), sample)
    except Exception:
        return frozenset()


def _type_of(group: Any) -> torch.dtype:
    """Return the type of the root's weights, or single precision where they are in half precision."""
    module = group[0].dep.target.module
    tensors = [module] if isinstance(module, nn.Parameter) else list(module.parameters())
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
