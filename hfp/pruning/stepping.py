"""Prune step by step: each step scores what is left, plans, applies the plan, and repairs what the plan leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from hfp.errors import InputError, described
from hfp.importance import CriterionError
from hfp.pruning.part import Part
from hfp.pruning.planning import Goal, Step, planned
from hfp.pruning.repair import RepairReport
from hfp.pruning.repair import repair as repaired
from hfp.pruning.request import PruneRequest
from hfp.pruning.schedule import Earlier
from hfp.reconstruct import IndexMap


@dataclass(frozen=True)
class State:
    """Keeps how far a pruning has come.

    Args:
        full: the full model.
        index_map: the place of what is left in the full model.
        costs: what is left of its costs, by name.
        channels: how many of the coupled groups' channels are left.
        repairs: what the last step's repairs did.
        first: the first step's plan.
        last: the last step's plan.
    """

    full: nn.Module
    index_map: IndexMap
    costs: Mapping[str, float]
    channels: Earlier = Earlier()
    repairs: tuple[RepairReport, ...] = ()
    first: Step | None = None
    last: Step | None = None

    @property
    def model(self) -> nn.Module:
        """Return the model that is left."""
        return self.full if self.last is None else self.last.compact


def stepped(model: nn.Module, own: nn.Module, part: Part, costs: Mapping[str, float], request: PruneRequest) -> State:
    """Go all steps of a request.

    Args:
        model: the caller's model, which a criterion of the caller's may know by its layers.
        own: the copy of it that is pruned.
        part: what of it is pruned.
        costs: what the part costs, by name.
        request: what was asked.

    Raises:
        InputError: the budget can't be met, or a repair can't run.
        CriterionError: the criterion has no score for any group.
        MapError: nothing can be removed exactly.
    """
    state = State(own, IndexMap.identity(model), costs)
    for step in range(1, request.steps + 1):
        goal = Goal(own, costs, part, request.budget.part(step, request.steps), state.channels)
        try:
            state = _step(state, model if step == 1 else state.model, goal, _numbered(request, step))
        except InputError as error:
            if request.steps == 1:
                raise
            raise InputError(f"in step {step} of {request.steps}, to {goal.budget}: {error}") from error
    return state


def _numbered(request: PruneRequest, step: int) -> PruneRequest:
    """Return the request of one step, which tells which step it is."""
    if request.steps == 1:
        return request
    return replace(request, tell=lambda text: request.tell(f"step {step} of {request.steps}: {text}"))


def _step(state: State, shown: nn.Module, goal: Goal, request: PruneRequest) -> State:
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
        state, index_map=total, costs=costs, channels=state.channels.then(step.plan.sizes, step.plan.kept),
        repairs=repairs, first=state.first or step, last=step,
    )  # fmt: skip


def _repairs(
    full: nn.Module, compact: nn.Module, index_map: IndexMap, request: PruneRequest
) -> tuple[RepairReport, ...]:
    """Repair what is left, as asked; an error in repairs that nobody asked for says how to go without."""
    try:
        return repaired(full, compact, index_map, request.data, request.repair)
    except Exception as error:
        if not request.usual_repair or isinstance(error, InputError | CriterionError):
            raise
        raise InputError(
            f"the repair, which is usual where data are given, can't run the model on them ({described(error)}); "
            "repair=None goes without"
        ) from error
