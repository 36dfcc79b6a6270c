"""Prune a model to a budget in one call: check the request, plan and apply step by step, report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hfp.costs.macs import latencies
from hfp.errors import InputError, described
from hfp.importance import CriterionError
from hfp.pruning.budget import Budget
from hfp.pruning.collector import only_new_objects
from hfp.pruning.layers_report import layer_reports, unrounded
from hfp.pruning.own_copy import own_copy
from hfp.pruning.part import Part, check_whole, part_of
from hfp.pruning.planning import Goal, Step, planned
from hfp.pruning.progress import told
from hfp.pruning.repair import AUTO, RepairReport, checked_kinds
from hfp.pruning.repair import repair as repaired
from hfp.pruning.repair.apply import usual_kinds, written_by_repairs
from hfp.pruning.report import PruneReport
from hfp.pruning.request import Importance, PruneRequest, check_model, layer_names, repeatable
from hfp.pruning.result import PruneResult
from hfp.pruning.schedule import RankingRules
from hfp.reconstruct import IndexMap, compact_model


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
    ignored_layers: Iterable[nn.Module | str] | nn.Module | str = (),
    prune_heads: bool = True,
    steps: int = 1,
    repair: str | Iterable[str] | None = AUTO,
    progress: bool | Callable[[str], None] | None = None,
    part: str | None = None,
) -> PruneResult:
    """Remove the least important channels of a model until it meets a budget.

    Nothing of the caller's is changed: the model never runs itself, a copy does. Its mode, gradients, buffers, hooks
    and the random number generators stay as they are. Weights may be frozen. What can't be removed exactly is left
    alone, and the report says why.

    Args:
        model: the full model, on any device but meta.
        example_inputs: what the model is called with; a tuple or list is unpacked, a dict are keywords.
        budget: what shall remain. It is met from below, as near as the model's steps allow; the report has the
            distance.
        importance: a criterion's name (`hfp.importance.names()`), or any callable that takes a torch-pruning group and
            returns one score per channel; the lowest are removed first.
        data: batches for criteria that need data, for the measured ranking and for repairs.
        loss_fn: `(outputs, targets) -> loss`, for the same criteria and ranking.
        ranking: "layer": every group loses the same share. "global": the lowest scores of the whole model go first.
            "measured": how much each group loses is chosen by losses, measured with parts of each group gone; the
            scores choose which of its channels (`hfp.pruning.measuring`).
        round_to: leave a multiple of this many outputs in every layer that loses some. The report names layers where
            that isn't possible.
        min_channels: how many outputs every layer keeps at least.
        ignored_layers: modules or their names, or one alone; their outputs stay. The model's outputs always stay.
        prune_heads: attention loses whole heads; otherwise it loses a part of every head, where that is exact.
        steps: in how many steps to go. Each step scores again; a criterion object is reset before it.
        repair: "auto", the default, does "least-squares" where data are given. None does nothing. Else one or several
            of "bias", "least-squares" and "batch-norm", done in this order after each step. Each is a pass over the
            data: "bias" puts the mean of what removed channels gave into the next layers' biases, "least-squares" fits
            the weights that are left to the full model's outputs, "batch-norm" takes the running statistics anew. The
            report says per layer what was won.
        progress: True shows what is being done, in a terminal, in a notebook or as lines; a function is called with it.
        part: the name of a module; only what runs inside it is pruned, and its outputs stay. It must run exactly once
            in a pass of the whole model, which is what `example_inputs`, `data` and `ignored_layers` are still about.
            The budget and the report's costs are shares and costs of the part alone. None prunes the whole model.

    Returns:
        The compact model, its place in the full one, and a report.

    Raises:
        InputError: something given can't be used, or the budget can't be met; the message says what can be reached.
        CriterionError: the criterion is unknown or has no score for any group. A group that it has none for is left
            alone.
        MapError: nothing of the model can be removed exactly.

    >>> import hfp, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    >>> result = hfp.prune(model, torch.zeros(1, 4), hfp.Budget(params=0.5))
    >>> result.model[0].out_features, model[0].out_features
    (31, 64)
    """
    check_model(model, budget)
    rules = RankingRules(ranking, round_to, min_channels)
    ignored = layer_names(model, ignored_layers)
    kinds = usual_kinds(data) if repair == AUTO else checked_kinds(repair)
    with torch.random.fork_rng(), told(progress) as tell, only_new_objects():
        return _pruned(
            model,
            PruneRequest(
                example_inputs, budget, importance, repeatable(data), loss_fn,
                rules, ignored, prune_heads, steps, kinds, repair == AUTO, tell, part,
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class _State:
    """How far pruning is.

    Args:
        full: the full model.
        index_map: the place of what is left in the full model.
        costs: what is left of its costs, by name.
        left: the share of the coupled groups' channels that is left.
        repairs: what the last step's repairs did.
        first: the first step's plan.
        last: the last step's plan.
    """

    full: nn.Module
    index_map: IndexMap
    costs: Mapping[str, float]
    left: float = 1.0
    repairs: tuple[RepairReport, ...] = ()
    first: Step | None = None
    last: Step | None = None

    @property
    def model(self) -> nn.Module:
        """What is left."""
        return self.full if self.last is None else self.last.compact


def _pruned(model: nn.Module, request: PruneRequest) -> PruneResult:
    own, hooked = own_copy(model)
    part, full = _started(own, hooked, request)
    state = _State(own, IndexMap.identity(model), full)
    for step in range(1, request.steps + 1):
        sizes = {} if state.first is None else state.first.coupling.sizes
        goal = Goal(own, full, part, request.budget.part(step, request.steps), sizes)
        state = _step(state, model if step == 1 else state.model, goal, _stepped(request, step))
    check_whole(part, own, state.index_map, request.inputs)
    compact = compact_model(model, state.index_map, _written(model, state))
    costs = _costs(own, state, full, part, request)
    return PruneResult(compact, state.index_map, _report(model, state, costs, hooked, part, request))


def _started(own: nn.Module, hooked: tuple[str, ...], request: PruneRequest) -> tuple[Part, dict[str, float]]:
    """What is pruned and what it costs.

    Raises:
        InputError: the model does not run on the inputs, or it has no such part.
    """
    try:
        part = part_of(own, request.inputs, request.part)
        return part, part.costs(own)
    except InputError:
        raise
    except Exception as error:
        missing = f"; hooks of {', '.join(hooked)} are plain functions, which are not called here" if hooked else ""
        raise InputError(
            f"the model does not run on the example inputs ({type(error).__name__}: {error}){missing}"
        ) from error


def _stepped(request: PruneRequest, step: int) -> PruneRequest:
    """The request of one step, which tells which step it is."""
    if request.steps == 1:
        return request
    return replace(request, tell=lambda text: request.tell(f"step {step} of {request.steps}: {text}"))


def _step(state: _State, shown: nn.Module, goal: Goal, request: PruneRequest) -> _State:
    """Plan one step, apply it and repair what is left."""
    if state.first is not None and hasattr(request.importance, "reset"):
        request.importance.reset()  # what it knows is of a larger model
    step = planned(state.model, shown, state.costs, goal, request)
    total = state.index_map.then(step.coupling.index_map(step.plan))
    repairs = state.repairs
    costs: Mapping[str, float] = goal.part.inside(step.coupling.costs(step.plan.kept))
    if request.repair:
        request.tell("repairing")
        repairs = _repairs(goal.model, step.compact, total, request)
    if request.repair or not step.coupling.counts:
        costs = goal.part.costs(step.compact)
    return replace(
        state, index_map=total, costs=costs, left=state.left * (1 - step.plan.ratio), repairs=repairs,
        first=state.first or step, last=step,
    )  # fmt: skip


def _repairs(
    full: nn.Module, compact: nn.Module, index_map: IndexMap, request: PruneRequest
) -> tuple[RepairReport, ...]:
    """The repairs that are asked for; a failure of those that nobody asked for says how to go without."""
    try:
        return repaired(full, compact, index_map, request.data, request.repair)
    except Exception as error:
        if not request.usual_repair or isinstance(error, InputError | CriterionError):
            raise
        raise InputError(
            f"the repair, which is usual where data are given, can't run the model on them ({described(error)}); "
            "repair=None goes without"
        ) from error


def _written(model: nn.Module, state: _State) -> Mapping[str, Tensor] | None:
    """The state of the compact model: the caller's, but for what repairs wrote; None where it is all the caller's."""
    if not state.repairs:
        return None
    values = state.index_map.restrict(model.state_dict())
    found = state.model.state_dict()
    return {**values, **{name: found[name] for name in written_by_repairs(state.model)}}


def _costs(
    full: nn.Module, state: _State, costs: Mapping[str, float], part: Part, request: PruneRequest
) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {name: (before, state.costs[name]) for name, before in costs.items()}
    if request.budget.latency is not None:
        request.tell("measuring latency")
        before, left = latencies((part.view(full), part.view(state.model)), part.inputs)
        found["latency"] = (before, left)
    return found


def _report(
    model: nn.Module,
    state: _State,
    costs: Mapping[str, tuple[float, float]],
    hooked: tuple[str, ...],
    part: Part,
    request: PruneRequest,
) -> PruneReport:
    assert state.first is not None
    coupling, stuck = state.first.coupling, state.first.stuck

    def reason(tensor: str, dim: int) -> str | None:
        return coupling.reason(tensor, dim) or stuck.get(tensor.rpartition(".")[0])

    layers = tuple(each for each in layer_reports(model, state.index_map, reason) if part.holds(each.name))
    notes = [*unrounded(layers, request.rules.round_to)]
    if hooked:
        notes.append(
            f"hooks of {', '.join(hooked)} were not called while pruning, and the pruned model keeps them: if one "
            "changes what the model computes, make it a part of the model"
        )
    return PruneReport(
        budget=str(request.budget),
        criterion=request.criterion,
        ratio=1 - state.left,
        costs=costs,
        layers=layers,
        unknown=tuple(sorted(coupling.unknown)),
        repairs=state.repairs,
        distance=request.budget.distances(costs),
        notes=tuple(notes),
        part=part.name,
    )
