"""Run both models once and find the weights that lost inputs, and so can be repaired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hfp.layers.calling import results
from hfp.pruning.repair.constants import Constant, Uses
from hfp.pruning.repair.following import Choices, Following, Place, Run
from hfp.pruning.repair.paired import Pair
from hfp.pruning.repair.products import Product
from hfp.pruning.repair.weights import COMPUTED, Cut
from hfp.reconstruct import IndexMap

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """What a forward pass of both models shows.

    Args:
        wanted: names of the weights that lost inputs and can be fitted.
        calls: how many products each weight takes part in.
        constants: where the outputs of a product take up a constant.
        reasons: layer -> why it can't be repaired.
        outputs: what the full and the compact model return.
    """

    wanted: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    constants: Mapping[Place, Constant] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    outputs: tuple[Any, Any] = (None, None)


def layer_of(weight: str) -> str:
    """Return the name of the layer that a weight belongs to, or the weight's own where it isn't called `weight`."""
    path, _, key = weight.rpartition(".")
    return path if key == "weight" else weight


def read_once(pair: Pair, index_map: IndexMap, batch: Any) -> Reading:
    """Run both models on a batch."""
    choices, expected = Choices(), dict[Place, Shape]()
    lost, unknown = set[str](), set[str]()

    def keep(place: Place, product: Product, cut: Cut | None, output: Tensor) -> None:
        if cut is None:
            expected[place] = ()
            unknown.add(place[0])
        else:
            expected[place] = tuple(product.target(product.arranged(output), cut).shape)
            if cut.left(product.in_dim) is not None:
                lost.add(place[0])

    full_output = pair.run_full(batch, keep, choices)
    uses = Uses(pair.weights)
    lookout = _Lookout(pair, choices.again(), uses)
    with lookout:
        output = pair.output(pair.compact, batch)
    uses.read(results(output), "returned")
    reasons = {name: _reason(name, uses, lookout.shapes, expected) for name in lost}
    wanted = {name for name, reason in reasons.items() if reason is None}
    named = {layer_of(name): reason for name, reason in reasons.items() if reason is not None}
    named |= {layer_of(name): _UNKNOWN for name in unknown if pair.cuts.unknown(name)}
    seen = {name for name, _ in expected}
    named |= dict.fromkeys(_readers(pair, index_map, seen), _UNSEEN)
    return Reading(
        wanted,
        Counter(name for name, _ in lookout.shapes),
        uses.constants(pair.compact, wanted),
        named,
        (full_output, output),
    )


_UNKNOWN = "it can't be told which part of its weight is multiplied with its inputs"
_UNSEEN = "no product of inputs with its weight was seen; it is not run, or its weight is computed anew in every call"


class _Lookout(Following):
    """Takes down the shapes of the compact model's products, and all uses of their outputs and of weights."""

    def __init__(self, pair: Pair, choices: Choices, uses: Uses) -> None:
        super().__init__(pair.weights, self._met, choices)
        self.shapes: dict[Place, Shape] = {}
        self._uses = uses

    def _met(self, place: Place, product: Product, run: Run) -> Tensor:
        self._uses.entered(product)
        output = run()
        self.shapes[place] = tuple(product.arranged(output).shape)
        self._uses.made(place, product, output)
        return output

    def passed(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Take down which tensors an operation reads."""
        self._uses.passed(func, args, kwargs)


def _reason(name: str, uses: Uses, found: Mapping[Place, Shape], expected: Mapping[Place, Shape]) -> str | None:
    """Say why a weight can't be fitted; None where it can."""
    mine, other = ({number: shape for (weight, number), shape in each.items() if weight == name}
                   for each in (found, expected))  # fmt: skip
    if name in uses.of_weights:
        return f"its weight is also read by {', '.join(sorted(uses.of_weights[name]))}"
    if len(mine) != len(other):
        return f"the full model multiplies with its weight {len(other)} times in one pass, the compact one {len(mine)}"
    if mine != other:
        return "the compact model gives it other rows than the full one"
    return None


def _readers(pair: Pair, index_map: IndexMap, seen: set[str]) -> Iterator[str]:
    """Name the layers that lost inputs, of those with whose weights no product was seen."""
    for name, module in pair.full.named_modules():
        if COMPUTED in name.split("."):
            continue
        for key, tensor in module.named_parameters(recurse=False):
            weight = f"{name}.{key}".lstrip(".")
            cut = index_map.tensors.get(weight)
            unseen = pair.full_weights.name(tensor) not in seen
            if cut is not None and tensor.dim() > 1 and unseen and _reads(module, cut.kept):
                yield layer_of(weight)


def _reads(module: nn.Module, kept: tuple[Tensor | None, ...]) -> bool:
    """Return whether a layer whose weight kept these indices lost inputs."""
    cut = [each is not None for each in kept]
    if isinstance(module, _ConvNd):
        return cut[0 if module.transposed else 1]
    if isinstance(module, nn.Linear | nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
        return cut[1]
    return not isinstance(module, nn.Embedding) and sum(cut) > 1
