"""Which channels go: a plan that meets a budget and whose compact model computes what it should."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from hfp.costs.macs import latencies, macs_per_weight, parameters, state_bytes
from hfp.errors import InputError
from hfp.layers.products import owner_of, weight_entries
from hfp.pruning.budget import Budget
from hfp.pruning.measuring import mean_loss, measured, measurements, samples_for
from hfp.pruning.meeting import meet, out_of_reach
from hfp.pruning.part import Part
from hfp.pruning.request import PruneRequest
from hfp.pruning.schedule import Bundle, Earlier, Kept, Order
from hfp.pruning.scoring import criterion_for, scored, structured
from hfp.reconstruct import MapError, Plan, compact_model
from hfp.reconstruct.coupling.coupling import MOST_CHECKS, Coupling


@dataclass(frozen=True)
class Goal:
    """What a plan shall reach.

    Args:
        model: the full model, to measure latency against.
        costs: the costs of the full model, or of its part, by name.
        part: what of it is pruned, and what that is called with.
        budget: what may be left.
        earlier: what earlier steps left of the full model's channels.
    """

    model: nn.Module
    costs: Mapping[str, float]
    part: Part
    budget: Budget
    earlier: Earlier = Earlier()


@dataclass(frozen=True)
class Step:
    """A plan of one step.

    Args:
        model: what the plan is for.
        coupling: the groups it is about.
        plan: what is kept of each group.
        stuck: layers that the rules leave no choice, with why.
    """

    model: nn.Module
    coupling: Coupling
    plan: Plan
    stuck: Mapping[str, str]

    @cached_property
    def compact(self) -> nn.Module:
        """The compact model; it is built when it is first asked for."""
        return compact_model(self.model, self.coupling.index_map(self.plan))


def planned(model: nn.Module, shown: nn.Module, costs: Mapping[str, float], goal: Goal, request: PruneRequest) -> Step:
    """A plan that meets the goal and that the check with numbers finds nothing wrong with.

    Args:
        model: what is pruned; it is run.
        shown: the same layers, which a criterion that does not run the model is shown.
        costs: the costs of the model, or of its part, by name.
        goal: what to reach.
        request: how.

    Raises:
        InputError: the budget is out of reach, or the criterion's scores are none.
        CriterionError: no group can be scored.
        MapError: nothing can be removed exactly.
    """
    request.tell("following channels")
    run, inputs = goal.part.view(model), goal.part.inputs
    coupling = Coupling.trace(run, inputs, request.ignored_layers, request.prune_heads, goal.part.shared)
    if goal.part.inside(coupling.costs({})) != costs:
        coupling = coupling.miscounting()
    if request.rules.ranking == "measured" and coupling.names:
        coupling = coupling.verified(run, inputs)  # what must stay is found before losses are measured, and not after
    request.tell("scoring")
    scores_of = model if request.scores_with_data else shown
    criterion = criterion_for(scores_of, request)
    refused: dict[str, str] = {}
    for _ in range(MOST_CHECKS):
        if not coupling.names:
            _check_exhausted(coupling, costs, goal)
            return Step(model, coupling, coupling.plan({}), {})
        bundles, unscored = scored(coupling, scores_of, criterion, request.criterion)
        if unscored:
            coupling, refused = coupling.leaving(unscored), {**refused, **unscored}
            continue
        request.tell(f"meeting {goal.budget}")
        try:
            plan = _plan(bundles, coupling, model, goal, request)
        except InputError as error:
            raise InputError(f"{error}{_left_alone(refused)}") from None
        request.tell("checking with numbers")
        checked = coupling.checked(run, inputs, plan)
        if checked is coupling:
            return Step(model, coupling, plan, _stuck(bundles, request))
        coupling = checked
    raise MapError(
        f"after {MOST_CHECKS} attempts the compact model still does not compute what it should: {coupling.why_nothing}"
    )


def _check_exhausted(coupling: Coupling, costs: Mapping[str, float], goal: Goal) -> None:
    """Make sure that a model of which nothing can be removed any more is small enough.

    Raises:
        InputError: earlier steps removed all that can go, and more should go.
        MapError: there was nothing from the start.
    """
    if not goal.earlier.sizes:
        what = "this model" if goal.part.name is None else goal.part.name
        raise MapError(f"nothing can be removed from {what}: {goal.part.why_nothing(coupling)}")
    for name, limit in goal.budget.costs.items():
        if name in costs and costs[name] > limit * goal.costs[name]:
            raise InputError(out_of_reach(name, limit, costs[name] / goal.costs[name]))


def _plan(bundles: list[Bundle], coupling: Coupling, model: nn.Module, goal: Goal, request: PruneRequest) -> Plan:
    if request.rules.ranking == "measured":
        bundles = _measured(bundles, coupling, model, goal, request)
    elif request.rules.ranking == "isomorphic":
        bundles = structured(bundles, coupling, model)
    order = Order.of(bundles, request.rules, goal.earlier)
    if goal.budget.ratio is not None:
        return coupling.plan(order.until(goal.budget.ratio))
    costs = _relative_costs(coupling, model, goal)
    return coupling.plan(meet(order, goal.budget.costs, costs, goal.budget.tolerance))


def _left_alone(refused: Mapping[str, str]) -> str:
    """What to say of the groups without scores, where they may be why a budget is out of reach."""
    if not refused:
        return ""
    name, reason = next(iter(refused.items()))
    return f"; coupled groups left alone: {len(refused)}, such as that of {name}: {reason}"


def _stuck(bundles: list[Bundle], request: PruneRequest) -> dict[str, str]:
    """Layers whose channels the rules don't let go, with the reason."""
    rules = request.rules
    reason = f"no part of its channels can go with round_to={rules.round_to or 1} and min_channels={rules.min_channels}"
    return {
        name: reason
        for bundle in bundles
        if bundle.steps > 1 and len(bundle.levels(rules)) == 1
        for name in bundle.scores
    }


def _measured(
    bundles: list[Bundle], coupling: Coupling, model: nn.Module, goal: Goal, request: PruneRequest
) -> list[Bundle]:
    """The bundles with prices from losses, in place of scores."""
    assert request.loss_fn is not None
    loss_fn, cost = request.loss_fn, _priced_cost(model, goal)
    batches = samples_for(request.data, measurements(bundles, request.rules))

    def outcome(kept: Kept) -> tuple[float, float]:
        plan = coupling.plan(kept)
        compact = compact_model(model, coupling.index_map(plan))
        return cost(compact, plan), mean_loss(compact, batches, loss_fn)

    return measured(bundles, request.rules, outcome)


def _priced_cost(model: nn.Module, goal: Goal) -> Callable[[nn.Module, Plan], float]:
    """What removals are priced by: the cost that is limited, or the sum of several as shares of the full model's.

    Latency is priced by multiply-accumulates, and these by the weights, because every weight of a layer takes part in
    as many.
    """
    uses = macs_per_weight(goal.part.view(model), goal.part.inputs)
    names = list(goal.budget.limits)

    def one(name: str, compact: nn.Module, plan: Plan) -> float:
        if name == "ratio":
            return -plan.ratio
        if name in ("params", "bytes"):
            return parameters(compact) if name == "params" else state_bytes(compact)
        layers = dict(compact.named_modules(remove_duplicate=False))
        return sum(count * weight_entries(layers[owner_of(weight)[0]]) for weight, count in uses.items())

    def cost(compact: nn.Module, plan: Plan) -> float:
        if len(names) == 1:
            return one(names[0], compact, plan)
        return sum(one(name, compact, plan) / goal.costs.get(name, goal.costs["macs"]) for name in names)

    return cost


def _relative_costs(coupling: Coupling, model: nn.Module, goal: Goal) -> Callable[[Kept], dict[str, float]]:
    """What a plan costs of all that the budget limits, as shares of the full model's.

    Where counting from the kept channels gives something else than running, each plan's compact model is built and run.
    """
    names = goal.budget.costs

    def costs(kept: Kept) -> dict[str, float]:
        found: dict[str, float] = {}
        if set(names) - {"latency"}:
            left = goal.part.inside(coupling.costs(kept) if coupling.counts else _built_costs(coupling, kept))
            found |= {name: left[name] / goal.costs[name] for name in names if name != "latency"}
        if "latency" in names:
            compact = compact_model(model, coupling.index_map(coupling.plan(kept)))
            full, left_over = latencies((goal.part.view(goal.model), goal.part.view(compact)), goal.part.inputs)
            found["latency"] = left_over / full
        return found

    return costs


def _built_costs(coupling: Coupling, kept: Kept) -> dict[str, float]:
    """The costs of a plan's compact model, which is built."""
    skeleton, inputs = coupling.compact_skeleton(coupling.plan(kept))
    return Part(None, inputs).costs(skeleton)
