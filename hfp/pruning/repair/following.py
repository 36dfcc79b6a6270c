"""Meet every product of a forward pass, and make the same choices in two passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hfp.pruning.repair.products import Product, aten, product_of
from hfp.pruning.repair.weights import Weights

Run = Callable[[], Tensor]
Place = tuple[str, int]
"""A product of a forward pass: its weight's name, and how many products with this weight came before."""

Meet = Callable[[Place, Product, Run], Tensor]
"""Is given a product and a function that computes it; returns the outputs."""


@dataclass
class Choices:
    """The largest values that a forward pass picked, such as the experts of a token, in order.

    Args:
        made: the indices that were picked.
        repeated: whether another pass picks the same ones, so that its rows are those of the first pass.
    """

    made: list[Tensor] = field(default_factory=list)
    repeated: bool = False
    _next: int = 0

    def again(self) -> Choices:
        """Return the choices for a pass that repeats them."""
        return Choices(self.made, True)

    def picked(self, packet: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], run: Callable[[], Any]) -> Any:
        """Compute a choice, or repeat it."""
        if not self.repeated:
            found = run()
            self.made.append((found[1] if packet is aten.topk else found).clone())
            return found
        before = self.made[self._next] if self._next < len(self.made) else None
        self._next += 1
        found = run()
        if before is None or before.shape != (found[1] if packet is aten.topk else found).shape:
            return found
        if packet is aten.argmax:
            return before.clone()
        dim = args[2] if len(args) > 2 else kwargs.get("dim", -1)
        return args[0].gather(dim, before), before.clone()


class Following(TorchDispatchMode):
    """Inside, every product with one of the model's weights goes through `meet`."""

    def __init__(self, weights: Weights, meet: Meet, choices: Choices) -> None:
        super().__init__()
        self.weights, self._meet, self._choices = weights, meet, choices
        self._count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute an operation."""
        kwargs = kwargs or {}

        def run() -> Any:
            return func(*args, **kwargs)

        packet = func.overloadpacket
        if packet is aten.topk or packet is aten.argmax:
            return self._choices.picked(packet, args, kwargs, run)
        product = product_of(packet, args, kwargs, lambda tensor: self.weights.name(tensor) is not None)
        if product is None:
            self.passed(func, args, kwargs)
            return run()
        name = self.weights.name(product.weight)
        assert name is not None
        place = (name, self._count[name])
        self._count[name] += 1
        return self._meet(place, product, run)

    def passed(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Be told of an operation that is no product."""
