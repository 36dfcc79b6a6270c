"""What `hfp.prune` is asked for, checked before anything is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from hfp import importance as criteria
from hfp.errors import InputError
from hfp.importance.capture.batches import not_batches
from hfp.pruning.budget import Budget
from hfp.pruning.schedule import RankingRules

Importance = str | Callable[[Any], Tensor]


@dataclass(frozen=True)
class PruneRequest:
    """A request that was checked. The arguments are those of `hfp.prune`.

    Args:
        ignored_layers: names of layers.
        repair: kinds of repairs, in order.
        usual_repair: whether these are the usual ones, which nobody asked for.
        tell: is called with what is being done next.
        part: the name of the module that is pruned; None for the whole model.
    """

    inputs: Any
    budget: Budget
    importance: Importance
    data: Any
    loss_fn: Callable[..., Tensor] | None
    rules: RankingRules
    ignored_layers: tuple[str, ...]
    prune_heads: bool
    steps: int
    repair: tuple[str, ...]
    usual_repair: bool
    tell: Callable[[str], None]
    part: str | None = None

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        object.__setattr__(self, "steps", int(self.steps))  # NumPy's numbers may be too small to count on from
        if not isinstance(self.prune_heads, bool):
            raise InputError(f"prune_heads is True or False, not {self.prune_heads!r}")
        if self.part is not None and not isinstance(self.part, str):
            raise InputError(f"part is the name of a module, not {type(self.part).__name__}")
        _check_data(self.data)
        _check_importance(self)
        if self.rules.ranking == "measured" and (self.data is None or self.loss_fn is None):
            raise InputError("ranking 'measured' needs data (batches of inputs and targets) and loss_fn")
        if self.repair and self.data is None:
            raise InputError(f"repair={self.repair[0]!r} needs data (batches of inputs, or of inputs and targets)")

    @property
    def criterion(self) -> str:
        """The criterion's name."""
        return self.importance if isinstance(self.importance, str) else type(self.importance).__name__

    @property
    def scores_with_data(self) -> bool:
        """Whether the criterion runs the model on the data."""
        if isinstance(self.importance, str):
            return criteria.describe(self.importance).needs == "data"
        return self.data is not None and hasattr(self.importance, "accumulate")


def layer_names(model: nn.Module, layers: Any) -> tuple[str, ...]:
    """The names of layers that are given as modules or names; one may be given alone.

    A copy of the model has other modules under the same names. `Coupling.trace` finds out whether there are such
    layers.

    Raises:
        InputError: something else is given, or a module of another model.
    """
    names = {module: name for name, module in model.named_modules()}
    given = (layers,) if isinstance(layers, nn.Module | str) else layers
    if not isinstance(given, Iterable):
        raise InputError(f"ignored_layers are modules of the model or their names, not {type(given).__name__}")
    found = []
    for layer in given:
        if not isinstance(layer, nn.Module | str):
            raise InputError(f"an ignored layer is a module of the model or its name, not {layer!r}")
        if isinstance(layer, nn.Module) and layer not in names:
            raise InputError(
                f"an ignored layer is a {type(layer).__name__} that is not in the model; give its name, or the one of "
                "this model and not of a copy"
            )
        found.append(layer if isinstance(layer, str) else names[layer])
    return tuple(found)


def check_criterion(importance: Any) -> None:
    """Refuse what is neither the name of a criterion nor an object that scores.

    Raises:
        InputError: it is a class, or can't be called.
    """
    if isinstance(importance, type):
        name = importance.__name__
        raise InputError(
            f"importance is the class {name}; give an object of it, such as {name}(), or a criterion's name"
        )
    if not isinstance(importance, str) and not callable(importance):
        raise InputError(f"importance is a criterion's name or a callable, not {type(importance).__name__}")


def repeatable(data: Any) -> Any:
    """Batches that can be gone through more than once."""
    return list(data) if isinstance(data, Iterator) else data


def _check_steps(steps: Any) -> None:
    if isinstance(steps, bool) or not isinstance(steps, Integral) or int(steps) < 1:
        raise InputError(f"steps is a whole number, at least 1, not {steps!r}")


def _check_data(data: Any) -> None:
    if isinstance(data, Tensor):
        reason: str | None = "data is a list or loader of batches; found one batch alone: give it as data=[batch]"
    elif isinstance(data, Dataset) and not hasattr(data, "__iter__"):
        reason = (
            f"data is a list or loader of batches; {type(data).__name__} is a data set of single samples: give a "
            "DataLoader of it (with batch_size=None where its samples are batches)"
        )
    else:
        reason = None if data is None else not_batches(data, "data")
    if reason is not None:
        raise InputError(reason)


def _check_importance(request: PruneRequest) -> None:
    importance, data = request.importance, request.data
    check_criterion(importance)
    if not isinstance(importance, str):
        if request.steps > 1 and data is None and hasattr(importance, "accumulate"):
            raise InputError(f"a {type(importance).__name__} can't score again in {request.steps} steps without data")
        return
    needs = criteria.describe(importance).needs
    if needs == "variation":
        raise InputError(
            f"criterion {importance!r} scores what a server knows from rounds of training; choose another one here"
        )
    if needs == "data" and (data is None or request.loss_fn is None):
        raise InputError(f"criterion {importance!r} needs data (batches of inputs and targets) and loss_fn")
