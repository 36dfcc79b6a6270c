"""Kronecker: what removing channels together adds to the loss, with the curvature of a layer as two small factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
from hfp.importance.capture.state import untouched
from hfp.importance.criteria.group_fisher import gauss_newton_root
from hfp.importance.errors import CriterionError
from hfp.importance.groups.members import Member, root_name, width
from hfp.importance.groups.roles import channels_at, is_attention, roles_of
from hfp.layers.products import PRODUCTS, groups_of

FISHERS = ("empirical", "gauss-newton")
_PARTS = ("rows", "total", "square", "gradient")


@dataclass(frozen=True)
class Totals:
    """What `samples` samples gave: factors by layer, and why a layer has none."""

    samples: int
    factors: Mapping[str, Factors]
    refused: Mapping[str, str]

    def plus(self, other: Totals) -> Totals:
        """Those of both sets of samples.

        Raises:
            CriterionError: when they are of models with layers of other shapes.
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
        return Totals(self.samples + other.samples, {**other.factors, **added}, {**self.refused, **other.refused})


class KroneckerImportance(FromData[Totals], tp.importance.Importance):  # type: ignore[misc]
    r"""Score of channel `c`: \(\tfrac12 M_{cc} + \sum_{s \in S} M_{cs}\), what its removal adds to that of `S`.

    `S` are the channels of the group that score lower.
    \(M_{cc'} = \sum \sum_{i \in c,\, j \in c'} (W^T G W)_{ij} A_{ij}\), the outer sum over the convolution and linear
    layers that read the coupled group, the inner over the columns of a layer's weight `W` `[out, in * kernel]` that a
    channel has. \(\tfrac12 \sum_{c, c' \in S} M_{cc'}\) is the loss, to second order, of taking the columns of `S`
    out of `W` where the curvature of the layer's weights is \(A \otimes G\): \(A = E\, x x^T\), the mean over samples
    and positions of what the kernel lies on, and \(G = \tfrac1N \sum g g^T\), with `g` the gradient at the layer's
    output, the sum over all positions of `N` samples. Channels that carry the same thing are dear together and cheap
    alone: `A` holds how far they move together, which no criterion of single channels sees.

    Norms, activations and depthwise convolutions pass channels on. Channels read by different groups of a convolution
    are taken to be independent. Channels that no layer reads (queries and keys) count where a linear layer writes them,
    by \(E\, y y^T \circ G\) at its output; where attention multiplies and a layer reads them, the mean of both. A layer
    that ran on no rows (an expert that no token was sent to) adds nothing.

    Cost: one forward, one backward to activations only, and a product of each layer's inputs with themselves: two to
    four plain forward and backward passes. Memory: of each layer, 8 bytes per pair of columns and pair of outputs,
    whatever the number of samples.

    Args:
        fisher: whose gradients `g` are. "gauss-newton" (default): of `gauss_newton_root` with random signs, the
            Gauss-Newton (and Fisher) factor of cross-entropy, for classifiers; targets aren't used. "empirical": of the
            loss at the true labels, any loss.
        joint: False scores a channel's removal alone, \(\tfrac12 M_{cc}\).
        repaired: score the removal of what a channel adds to its mean (default), with the covariance for `A`, for use
            where a repair keeps the mean: biases that absorb it, or batch-norm statistics taken anew.
        seed: of the signs, drawn sample after sample; workers that are merged should have different ones.

    Raises:
        CriterionError: an unknown Fisher.

    Source: of the factors, K-FAC, Martens and Grosse, ICML 2015, section 3, and for convolutions Grosse and Martens,
    ICML 2016, eq. 32; of their use for structured pruning, Wang et al., EigenDamage, ICML 2019. The sum over a coupled
    group and the selection of channels together are this project's.

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
        if fisher not in FISHERS:
            raise CriterionError(f"fisher is one of {', '.join(FISHERS)}, not {fisher!r}")
        self.fisher = fisher
        self.joint = joint
        self.repaired = repaired
        self._signs = np.random.default_rng(seed)
        self.reset()

    @property
    def samples(self) -> int:
        """How many samples have been accumulated."""
        return self._totals.samples

    def reset(self) -> None:
        """Forget everything accumulated, for instance after pruning a step."""
        self._totals = Totals(0, {}, {})

    def _measure(self, model: nn.Module, batches: Iterable[Any], run: Pass) -> Totals:
        found = Totals(0, {}, {})
        with untouched(model, parameters_require_grad=False), recording_factors(model) as recorder:
            for batch, size in run.batches(batches, model):
                output = run.output(model, batch)
                (self._scalar(output, run.target(output, batch, size), size, run) * run.scale).backward()
                found = found.plus(Totals(size, recorder.take(run.scale), recorder.refused))
        return found

    @property
    def _measured(self) -> Totals:
        return self._totals

    def _add(self, measured: Totals) -> None:
        self._totals = self._totals.plus(measured)

    def state(self) -> dict[str, Tensor]:
        """Everything accumulated as tensors by name, to send or to save; `load` takes it."""
        if self.samples == 0:
            return {}
        named = {
            f"{part}/{name}": torch.as_tensor(getattr(factors, part))
            for name, factors in self._totals.factors.items()
            for part in _PARTS
        }
        return {"samples": torch.tensor(self.samples), **named}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Add a `state`, as `merge` adds another criterion.

        Raises:
            CriterionError: when it is no such state, or another model's.
        """
        names = [key.removeprefix("rows/") for key in state if key.startswith("rows/")]
        wanted = {f"{part}/{name}" for name in names for part in _PARTS}
        if not names or wanted | {"samples"} != set(state):
            raise CriterionError(f"this is no state of a {type(self).__name__}")
        factors = {
            name: Factors(
                int(state[f"rows/{name}"]),
                state[f"total/{name}"],
                state[f"square/{name}"],
                state[f"gradient/{name}"],
            )
            for name in names
        }
        self._add(Totals(int(state["samples"]), factors, {}))

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor:
        """Scores of the group's channels, `[width]`.

        Raises:
            CriterionError: nothing accumulated, a model pruned since, or a group read by a layer without factors.
        """
        matrix = self.matrix(group)
        return (quadratic_joint_scores(matrix) if self.joint else matrix.diagonal() / 2).to(_type_of(group))

    @torch.no_grad()
    def matrix(self, group: Any) -> Tensor:
        """`M` of a coupled group, float64, `[width, width]`.

        Raises:
            CriterionError: nothing accumulated, a model pruned since, or a group read by a layer without factors.
        """
        if self.samples == 0:
            raise CriterionError("nothing has been accumulated; call accumulate(model, batches, loss_fn) first")
        readers, writers, _ = roles_of(group)
        if not readers and not writers:
            raise CriterionError(f"no layer reads the channels of {root_name(group)!r}: put it into ignored_layers")
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

    def _read(self, member: Member) -> tuple[Member, Tensor]:
        factors, matrix = self._of(member, "in"), as_matrix(member.layer)
        products = matrix.transpose(1, 2) @ (factors.gradient / self.samples) @ matrix * factors.moment(self.repaired)
        channels = channels_at(member, "in") // groups_of(member.layer)
        sums = products.unflatten(2, (channels, -1)).sum(3).unflatten(1, (channels, -1)).sum(2)
        return member, torch.block_diag(*sums)

    def _written(self, member: Member) -> tuple[Member, Tensor]:
        factors, matrix = self._of(member, "out"), as_matrix(member.layer)[0]
        moment = matrix @ factors.moment(True)[0] @ matrix.T
        if not self.repaired:
            bias: Any = member.layer.bias  # type: ignore[union-attr]
            mean = matrix @ (factors.total[0] / max(factors.rows, 1)) + (0 if bias is None else exact(bias.detach()))
            moment = moment + mean[:, None] * mean
        return member, moment * factors.gradient[0] / self.samples

    def _of(self, member: Member, side: str) -> Factors:
        layer: Any = member.layer
        if not isinstance(layer, PRODUCTS):
            raise CriterionError(
                f"layer {member.name!r} is a {type(layer).__name__}: Kronecker factors are of convolution and linear "
                "layers; take group-fisher, or put its group into ignored_layers"
            )
        found = self._totals.factors.get(member.name)
        if found is None and member.name in self._totals.refused:
            raise CriterionError(
                f"{self._totals.refused[member.name]}: take group-fisher, or put it into ignored_layers"
            )
        if found is None:
            raise CriterionError(
                f"layer {member.name!r} never ran by itself while accumulating: is this the same model? (torch's own "
                "attention calls no layers: take group-fisher there)"
            )
        shape = as_matrix(layer).shape
        if shape[2] != found.square.shape[2] or shape[1] != found.gradient.shape[2] or len(found.square) != shape[0]:
            raise CriterionError(
                f"layer {member.name!r} has {channels_at(member, side)} channels at its {side}put and had others while "
                "accumulating: call reset() and accumulate() after pruning"
            )
        return found


def _type_of(group: Any) -> torch.dtype:
    """The type of the root's weights, single precision for those of half."""
    module = group[0].dep.target.module
    tensors = [module] if isinstance(module, nn.Parameter) else list(module.parameters())
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
