"""Run the full and the compact model side by side, with the full one's outputs at hand for the compact one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hfp.importance.capture.batches import ForwardPass
from hfp.importance.capture.state import untouched
from hfp.layers.calling import modes_kept, random_state_kept, unfused
from hfp.pruning.repair.following import Choices, Following, Meet, Place, Run
from hfp.pruning.repair.products import Product
from hfp.pruning.repair.weights import Cut, Cuts, Weights, parametrized
from hfp.reconstruct import IndexMap

Keep = Callable[[Place, Product, Cut | None, Tensor], None]
"""Is given a product of the full model that is left in the compact one, what is left of it, and its outputs."""


@dataclass(frozen=True)
class Pair:
    """Both models, ready to run: in evaluation mode, without gradients, operations taken apart into products.

    Args:
        full: the full model; not changed.
        compact: the compact model.
        full_weights: the weights of the full model.
        weights: those of the compact one.
        cuts: what is left of the full ones.
    """

    full: nn.Module
    compact: nn.Module
    full_weights: Weights
    weights: Weights
    cuts: Cuts
    forward: ForwardPass = ForwardPass()

    def output(self, model: nn.Module, batch: Any) -> Any:
        """Return a model's output; models that draw random numbers always draw the same."""
        with random_state_kept(seed=0):
            return self.forward.output(model, batch)

    def run_full(self, batch: Any, keep: Keep, choices: Choices) -> Any:
        """Run the full model; places are counted as the compact model will count them."""
        count: Counter[str] = Counter()

        def meet(place: Place, product: Product, run: Run) -> Tensor:
            output, name = run(), place[0]
            cut = self.cuts.of(product.weight)
            if cut is None or not cut.gone:
                keep((name, count[name]), product, cut, output)
                count[name] += 1
            return output

        with Following(self.full_weights, meet, choices):
            return self.output(self.full, batch)

    def run_compact(self, batch: Any, meet: Meet, choices: Choices) -> Any:
        """Run the compact model, which makes the choices that the full one made."""
        with Following(self.weights, meet, choices.again()):
            return self.output(self.compact, batch)

    def over(
        self, batches: Iterable[Any], keep: Callable[[Product, Cut, Tensor, int], Any], wanted: set[str]
    ) -> Iterator[tuple[Mapping[Place, Any], int, Callable[[Meet], Any]]]:
        """Yield, for each batch, what was kept of the full outputs, its samples, and how to run the compact model.

        Args:
            batches: what the models are called with.
            keep: called with each wanted product, what is left of it, its outputs and the batch's number.
            wanted: names of weights.

        Raises:
            CriterionError: there is no batch, or one that holds no samples.
        """
        for number, (batch, size) in enumerate(self.forward.batches(batches, self.full), 1):
            choices, found = Choices(), dict[Place, Any]()

            def kept(place: Place, product: Product, cut: Cut | None, output: Tensor) -> None:
                if place[0] in wanted and cut is not None:
                    found[place] = keep(product, cut, output, number)  # noqa: B023

            self.run_full(batch, kept, choices)
            yield found, size, lambda meet: self.run_compact(batch, meet, choices)  # noqa: B023


@contextmanager
def paired(full: nn.Module, compact: nn.Module, index_map: IndexMap) -> Iterator[Pair]:
    """Make both models ready to run; modes and all of the full model are put back at the end.

    Weights that parametrizations compute are computed once inside, and may be written to; that is lost at the end.
    """
    with ExitStack() as stack:
        stack.enter_context(untouched(full, parameters_require_grad=False))
        stack.enter_context(modes_kept(compact))
        stack.enter_context(torch.no_grad())
        for model in (full, compact):
            stack.enter_context(unfused(model, attention=False))
        compact.eval()
        for model in (full, compact):
            stack.enter_context(computed_once(model))
        parents = Weights(full)
        yield Pair(full, compact, parents, Weights(compact), Cuts(parents, index_map))


@contextmanager
def computed_once(model: nn.Module) -> Iterator[None]:
    """Let weights that parametrizations compute be the same tensors inside, whenever they are read.

    PyTorch's own `parametrize.cached` takes a copy's weights for those of the model that it was copied from.
    """
    kinds = {module: type(module) for _, module in parametrized(model)}
    weights = {module: cast(Tensor, module.weight).detach().clone() for module in kinds}
    for module, kind in kinds.items():
        module.__class__ = type(kind.__name__, (kind,), {"weight": weights[module]})
    try:
        yield
    finally:
        for module, kind in kinds.items():
            module.__class__ = kind
