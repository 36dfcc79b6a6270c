"""A criterion of your own in twenty lines: the squared gradient of the loss over batches.

    python examples/custom_criterion.py

It differs from the empirical Fisher information in that gradients are squared per batch and not per image. Once it is
registered it is a criterion like any other, for `hfp.prune` and for torch-pruning's own pruners.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

import hfp
from hfp.importance import DiagonalImportance, register


class BatchFisherImportance(DiagonalImportance):
    """Scores a channel by the sum of ``h w²`` over its weights, with `h` the squared gradient of a batch's loss."""

    def __init__(self) -> None:
        super().__init__(form="curvature")
        self._squares: dict[str, Tensor] = {}

    def accumulate(
        self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss_fn: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        """Add the squared gradients of all batches; the parameters' own `.grad` is not used."""
        names, parameters = zip(*model.named_parameters(), strict=True)
        for inputs, targets in batches:
            gradients = torch.autograd.grad(loss_fn(model(inputs), targets), parameters)
            for name, gradient in zip(names, gradients, strict=True):
                self._squares[name] = self._squares.get(name, torch.zeros_like(gradient)) + gradient.square()

    def reset(self) -> None:
        """Forget what was added; `hfp.prune(steps=...)` asks for that before it scores again."""
        self._squares.clear()

    def statistics(self, name: str) -> tuple[Tensor, Tensor]:
        """Return gradient and curvature of a parameter; the form "curvature" does not read the gradient."""
        return torch.zeros_like(self._squares[name]), self._squares[name]


register("batch-fisher", BatchFisherImportance, source="an example", needs="data")


def main() -> None:
    """Prune a small network by it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    batches = [(torch.randn(32, 16), torch.randint(4, (32,))) for _ in range(4)]
    result = hfp.prune(
        model,
        batches[0][0],
        hfp.Budget(macs=0.5),
        importance="batch-fisher",
        data=batches,
        loss_fn=nn.functional.cross_entropy,
    )
    before, after = result.report.costs["macs"]
    print(f"{after / before:.0%} of the multiply-accumulates are left")


if __name__ == "__main__":
    main()
