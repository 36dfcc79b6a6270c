"""Prune a model to a budget in one call: plan, check, apply."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfp import importance as criteria
from hfp.costs.macs import latencies, macs, macs_per_weight, parameters, state_bytes
from hfp.errors import InputError
from hfp.pruning.budget import Budget
from hfp.pruning.layers_report import PruneReport, layer_reports
from hfp.pruning.measuring import mean_loss, measured
from hfp.pruning.repair import RepairReport, checked_kinds
from hfp.pruning.repair import repair as repaired
from hfp.pruning.schedule import Bundle, Order, RankingRules, meet
from hfp.reconstruct import IndexMap, MapError, Plan, compact_model
from hfp.reconstruct.coupling.coupling import MOST_CHECKS, Coupling
from hfp.reconstruct.models.running import run_error

Importance = str | Callable[[Any], Tensor]
Cost = Callable[[Mapping[str, Sequence[int]]], float]


@dataclass(frozen=True)
class PruneResult:
    """A pruned model. model: compact. index_map: its place in the full model. report: what happened to every layer."""

    model: nn.Module
    index_map: IndexMap
    report: PruneReport


@dataclass(frozen=True)
class Goal:
    """What to reach. model, costs: the full model and its costs. inputs: what it is called with."""

    model: nn.Module
    inputs: Any
    costs: Mapping[str, float]
    budget: Budget


@dataclass(frozen=True)
class PruneRequest:
    """What `prune` was asked for."""

    importance: Importance
    data: Any
    loss_fn: Callable[..., Tensor] | None
    rules: RankingRules
    ignored_layers: tuple[str, ...]
    prune_heads: bool
    steps: int
    repair: tuple[str, ...]
    tell: Callable[[str], None]

    @property
    def criterion(self) -> str:
        """The criterion's name."""
        return self.importance if isinstance(self.importance, str) else type(self.importance).__name__


def prune(
    model: nn.Module,
    example_inputs: Any,
    budget: Budget,
    *,
    importance: Importance = "l2",
    data: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    ranking: str = "layer",
    round_to: int | None = None,
    min_channels: int = 1,
    ignored_layers: Iterable[nn.Module | str] = (),
    prune_heads: bool = True,
    steps: int = 1,
    repair: str | Iterable[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> PruneResult:
    """Remove the least important channels of a model until it meets a budget.

    Nothing of the caller's is changed: the model, its mode, gradients and buffers, and the random number generators
    stay as they are. Weights may be frozen. What can't be removed exactly is left alone, and the report says why.

    Args:
        model: the full model, on any device but meta.
        example_inputs: what the model is called with; a tuple or list is unpacked, a dict are keywords.
        budget: what shall remain, met from below within 2 % (a latency: from below).
        importance: a criterion's name (`hfp.importance.names()`), or any callable from a torch-pruning group to one
            score a channel, lowest removed first. With data, "kronecker" and the measured ranking were ahead on
            trained networks when half or more was removed (`examples/benchmarks/criteria.md`).
        data: batches for criteria that need data, the measured ranking and repairs.
        loss_fn: `(outputs, targets) -> loss` for those criteria and for the measured ranking.
        ranking: "layer" (every group loses the same share), "global" (the lowest scores of the whole model go first) or
            "measured" (how much each group loses is chosen by losses measured on the data with parts of it gone, five
            times a group, `hfp.pruning.measuring`; which of its channels, by score).
        round_to: leave a multiple of this many channels in every layer that is pruned.
        min_channels: what every layer keeps.
        ignored_layers: modules or their names; their output channels stay. The model's outputs always stay.
        prune_heads: attention loses whole heads; otherwise a part of every head, where that is exact.
        steps: in how many steps to go, scoring again before each. A criterion object is reset in between.
        repair: one or several of `hfp.pruning.repair.KINDS`, done in their order after each step, each a pass over the data:
            "bias" puts the mean of what removed channels gave into the next layers' biases, "least-squares" fits the
            weights that are left to the full model's outputs, "batch-norm" takes running statistics anew.
        progress: called with what is being done next.

    Raises:
        InputError: something given can't be used, or the budget can't be met; the message says what can be reached.
        CriterionError: the criterion is unknown or has no score for any group; a group that it has none for is left
            alone.
        MapError: nothing of the model can be removed exactly.
    """
    _check(model, budget, importance, data, loss_fn, steps)
    rules = RankingRules(ranking, round_to, min_channels)
    if ranking == "measured" and (data is None or loss_fn is None):
        raise InputError("ranking 'measured' needs data (batches of inputs and targets) and loss_fn")
    names = {module: name for name, module in model.named_modules()}
    ignored = tuple(layer if isinstance(layer, str) else names.get(layer, repr(layer)) for layer in ignored_layers)
    kinds = checked_kinds(repair)
    if kinds and data is None:
        raise InputError(f"repair={kinds[0]!r} needs data (batches of inputs, or of inputs and targets)")
    data = list(data) if isinstance(data, Iterator) else data  # it is gone through more than once
    request = PruneRequest(importance, data, loss_fn, rules, ignored, prune_heads, steps, kinds, progress or _silent)
    with torch.random.fork_rng():
        return _pruned(model, example_inputs, budget, request)


def _silent(_: str) -> None:
    pass


def _check(model: nn.Module, budget: Budget, importance: Importance, data: Any, loss_fn: Any, steps: int) -> None:
    if not isinstance(model, nn.Module) or not isinstance(budget, Budget):
        raise InputError(f"expected a module and a Budget, got {type(model).__name__} and {type(budget).__name__}")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError(
            "the model is on the meta device, so there are no weights to prune; Coupling.trace plans without weights"
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps is a whole number, at least 1, not {steps!r}")
    if not isinstance(importance, str):
        if not callable(importance):
            raise InputError(f"importance is a criterion's name or a callable, not {type(importance).__name__}")
        if steps > 1 and data is None and hasattr(importance, "accumulate"):
            raise InputError(f"a {type(importance).__name__} can't score again in {steps} steps without data")
        return
    needs = criteria.describe(importance).needs
    if needs == "variation":
        raise InputError(
            f"criterion {importance!r} scores what a server knows from rounds of training; choose another one here"
        )
    if needs == "data" and (data is None or loss_fn is None):
        raise InputError(f"criterion {importance!r} needs data (batches of inputs and targets) and loss_fn")


def _pruned(model: nn.Module, example_inputs: Any, budget: Budget, request: PruneRequest) -> PruneResult:
    error = run_error(model, example_inputs)
    if error is not None:
        raise InputError(f"the model does not run on the example inputs ({error})")
    full = _costs(model, example_inputs)
    stage, total, left = model, IndexMap.identity(model), 1.0
    couplings: list[Coupling] = []
    repairs: tuple[RepairReport, ...] = ()
    for step in range(1, request.steps + 1):
        request.tell("following channels" + (f", step {step} of {request.steps}" if request.steps > 1 else ""))
        if step > 1 and hasattr(request.importance, "reset"):
            request.importance.reset()  # what it knows is of a larger model
        goal = Goal(model, example_inputs, full, budget.part(step, request.steps))
        coupling, plan = _plan(stage, goal, request)
        index_map = coupling.index_map(plan)
        stage, total, left = compact_model(stage, index_map), total.then(index_map), left * (1 - plan.ratio)
        couplings.append(coupling)
        if request.repair:
            repairs = repaired(model, stage, total, request.data, request.repair)
    for compact, parent in zip(stage.modules(), model.modules(), strict=True):
        compact.training = parent.training
    after = _costs(stage, example_inputs)
    costs: dict[str, tuple[float, float]] = {name: (before, after[name]) for name, before in full.items()}
    if budget.kind == "latency":
        before, left_over = latencies((model, stage), example_inputs)
        costs["latency"] = (before, left_over)
    report = PruneReport(
        budget=str(budget),
        criterion=request.criterion,
        ratio=1 - left,
        costs=costs,
        layers=layer_reports(model, total, couplings[0].reason),
        unknown=tuple(sorted(couplings[0].unknown)),
        repairs=repairs,
    )
    return PruneResult(stage, total, report)


def _costs(model: nn.Module, example_inputs: Any) -> dict[str, float]:
    return {"macs": macs(model, example_inputs), "params": parameters(model), "bytes": state_bytes(model)}


def _plan(model: nn.Module, goal: Goal, request: PruneRequest) -> tuple[Coupling, Plan]:
    """A plan that meets the budget and that the check finds nothing wrong with."""
    coupling = Coupling.trace(model, goal.inputs, request.ignored_layers, request.prune_heads)
    request.tell("scoring")
    criterion = _criterion(model, request)
    refused: dict[str, str] = {}
    for _ in range(MOST_CHECKS):
        if not coupling.names:
            raise MapError(f"nothing can be removed from this model: {coupling.why_nothing}")
        bundles, unscored = _bundles(coupling, model, criterion)
        if unscored:
            coupling, refused = coupling.leaving(unscored), {**refused, **unscored}
            continue
        request.tell(f"meeting {goal.budget}")
        if request.rules.ranking == "measured":
            bundles = _measured(bundles, coupling, model, goal, request)
        cost = _relative_cost(coupling, model, goal)
        try:
            plan = coupling.plan(_kept(Order.of(bundles, request.rules), goal.budget, cost))
        except InputError as error:
            raise InputError(f"{error}{_left_alone(refused)}") from None
        request.tell("checking with numbers")
        checked = coupling.checked(model, goal.inputs, plan)
        if checked is coupling:
            return coupling, plan
        coupling = checked
    raise MapError(
        f"after {MOST_CHECKS} attempts the compact model still does not compute what it should: {coupling.why_nothing}"
    )


def _left_alone(refused: Mapping[str, str]) -> str:
    """What to say of the groups without scores, where they may be why a budget is out of reach."""
    if not refused:
        return ""
    name, reason = next(iter(refused.items()))
    return f"; coupled groups left alone: {len(refused)}, such as that of {name}: {reason}"


def _criterion(model: nn.Module, request: PruneRequest) -> Callable[[Any], Tensor]:
    found = criteria.create(request.importance) if isinstance(request.importance, str) else request.importance
    if request.data is not None and hasattr(found, "accumulate"):
        found.accumulate(model, request.data, request.loss_fn)
    return found


def _bundles(
    coupling: Coupling, model: nn.Module, criterion: Callable[[Any], Tensor]
) -> tuple[list[Bundle], dict[str, str]]:
    """The scored groups; or no groups, and those that can't be scored with the reason.

    Raises:
        CriterionError: no group at all can be scored.
    """
    groups = coupling.groups_of(model)
    scores: dict[str, Tensor] = {}
    unscored: dict[str, criteria.CriterionError] = {}
    for name in coupling.names:
        try:
            scores[name] = _scores(name, criterion(groups(name)), coupling.sizes[name])
        except criteria.CriterionError as error:
            unscored[name] = error
    if unscored:
        if not scores:
            raise next(iter(unscored.values()))
        return [], {name: f"the criterion has no score for it ({error})" for name, error in unscored.items()}
    found = [
        Bundle({name: scores[name] for name in names}, {name: coupling.layer_channels(name) for name in names})
        for names in coupling.linked
    ]
    return found, {}


def _scores(name: str, scores: Any, size: int) -> Tensor:
    if not isinstance(scores, Tensor) or scores.shape != (size,):
        found = f"shape {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(
            f"the criterion should give one score for each of the {size} channels of {name}; it gave {found}"
        )
    if not torch.isfinite(scores).all():
        raise InputError(f"the criterion's scores for {name} are not all finite")
    return scores.detach()


def _measured(
    bundles: list[Bundle], coupling: Coupling, model: nn.Module, goal: Goal, request: PruneRequest
) -> list[Bundle]:
    """Prices from losses, in place of scores."""
    assert request.loss_fn is not None
    loss_fn, uses = request.loss_fn, macs_per_weight(model, goal.inputs)

    def outcome(kept: Mapping[str, Sequence[int]]) -> tuple[float, float]:
        plan = coupling.plan(kept)
        compact = compact_model(model, coupling.index_map(plan))
        costs = {"params": parameters, "bytes": state_bytes, "ratio": lambda _: -plan.ratio}
        cost = costs.get(goal.budget.kind, lambda compact: _macs_of_weights(compact, uses))
        return cost(compact), mean_loss(compact, request.data, loss_fn)

    return measured(bundles, request.rules, outcome)


def _macs_of_weights(model: nn.Module, uses: Mapping[str, int]) -> float:
    """Multiply-accumulates of convolution and linear layers, when every weight takes part in as many as before."""
    tensors = model.state_dict()
    return sum(uses[name] * tensors[name].numel() for name in uses if name in tensors)


def _relative_cost(coupling: Coupling, model: nn.Module, goal: Goal) -> Cost:
    """What a plan costs of what the budget limits, as a share of the full model's; a ratio limits channels."""
    kind = goal.budget.kind

    def cost(kept: Mapping[str, Sequence[int]]) -> float:
        plan = coupling.plan(kept)
        if kind == "ratio":
            return 1 - plan.ratio
        if kind == "latency":
            full, left = latencies((goal.model, compact_model(model, coupling.index_map(plan))), goal.inputs)
            return left / full
        compact, inputs = coupling.compact_skeleton(plan)
        if kind == "macs":
            return macs(compact, inputs) / goal.costs["macs"]
        return (parameters(compact) if kind == "params" else state_bytes(compact)) / goal.costs[kind]

    return cost


def _kept(order: Order, budget: Budget, cost: Cost) -> dict[str, list[int]]:
    if budget.kind == "ratio":
        return order.until(budget.share)
    return meet(order, budget.share, cost, budget.kind, exact=budget.kind != "latency")
