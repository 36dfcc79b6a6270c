"""Prune a model to a budget in one call: check the request, go its steps, report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hfp.costs.macs import latencies
from hfp.errors import InputError, listed
from hfp.layers.calling import random_state_kept
from hfp.pruning.budget import Budget
from hfp.pruning.collector import only_new_objects
from hfp.pruning.layers_report import layer_reports, unrounded
from hfp.pruning.own_copy import MEND_HOOKS
from hfp.pruning.part import Part, check_whole, started
from hfp.pruning.progress import told
from hfp.pruning.prunable import check_model
from hfp.pruning.repair import AUTO, checked_kinds
from hfp.pruning.repair.apply import usual_kinds, written_by_repairs
from hfp.pruning.report import PruneReport
from hfp.pruning.request import Importance, PruneRequest, layer_names, repeatable
from hfp.pruning.result import PruneResult
from hfp.pruning.schedule import RankingRules
from hfp.pruning.stepping import State, stepped
from hfp.reconstruct import compact_model


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
            "isomorphic": they go first among groups of one structure, which have the same kinds of layers, and every
            structure loses the same share (Fang et al., ECCV 2024, arXiv 2407.04616).
            "measured": how much each group loses is chosen by losses, measured with parts of each group gone; the
            scores choose which of its channels (`hfp.pruning.measuring`).
        round_to: leave a multiple of this many outputs in every layer that loses some. The report names layers where
            that isn't possible.
        min_channels: how many outputs every layer keeps at least.
        ignored_layers: modules or their names, or one alone; their outputs stay. The model's outputs always stay.
        prune_heads: attention loses whole heads; otherwise it loses a part of every head where that is exact. Where
            it is not, heads of `scaled_dot_product_attention` stay.
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
    with torch.inference_mode(False), random_state_kept(), told(progress) as tell, only_new_objects():
        return _pruned(
            model,
            PruneRequest(
                example_inputs, budget, importance, repeatable(data), loss_fn,
                rules, ignored, prune_heads, steps, kinds, repair == AUTO, tell, part,
            ),
        )  # fmt: skip


def _pruned(model: nn.Module, request: PruneRequest) -> PruneResult:
    own, hooked, part, full = started(model, request.inputs, request.part)
    _check_counted(full, request)
    state = stepped(model, own, part, full, request)
    check_whole(part, own, state.index_map, request.inputs)
    compact = compact_model(model, state.index_map, _written(model, state))
    costs = _costs(own, state, full, part, request)
    return PruneResult(compact, state.index_map, _report(model, state, costs, hooked, part, request))


def _check_counted(costs: Mapping[str, float], request: PruneRequest) -> None:
    """Make sure that there is something of every cost that is limited.

    Raises:
        InputError: the full model has nothing of one.
    """
    for name in request.budget.costs:
        if costs.get(name) == 0:
            raise InputError(
                f"{name} can't be limited: {request.part or 'the model'} has 0 {name} on the example inputs; limit "
                "another cost, or give inputs with samples"
            )


def _written(model: nn.Module, state: State) -> Mapping[str, Tensor] | None:
    """Return the compact model's state where repairs wrote to it; None where all of it is the caller's."""
    if not state.repairs:
        return None
    values = state.index_map.restrict(model.state_dict())
    found = state.model.state_dict()
    return {**values, **{name: found[name] for name in written_by_repairs(state.model)}}


def _costs(
    full: nn.Module, state: State, costs: Mapping[str, float], part: Part, request: PruneRequest
) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {name: (before, state.costs[name]) for name, before in costs.items()}
    if request.budget.latency is not None:
        request.tell("measuring latency")
        before, left = latencies((part.view(full), part.view(state.model)), part.inputs)
        found["latency"] = (before, left)
    return found


def _report(
    model: nn.Module,
    state: State,
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
            f"hooks of {listed(hooked, most=4)} were not called while pruning, and the pruned model keeps them"
            + MEND_HOOKS
        )
    return PruneReport(
        budget=str(request.budget),
        criterion=request.criterion,
        ratio=state.channels.ratio,
        costs=costs,
        layers=layers,
        unknown=tuple(sorted(coupling.unknown)),
        repairs=state.repairs,
        distance=request.budget.distances(costs),
        notes=tuple(notes),
        part=part.name,
        ranking=request.rules.ranking,
    )
