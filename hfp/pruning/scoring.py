"""The scores of a model's coupled groups."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hfp import importance as criteria
from hfp.errors import InputError, described
from hfp.layers.calling import buffers_kept, modes_kept
from hfp.pruning.request import PruneRequest
from hfp.pruning.schedule import Bundle
from hfp.reconstruct.coupling.coupling import Coupling

Criterion = Callable[[Any], Tensor]


def criterion_for(model: nn.Module, request: PruneRequest) -> Criterion:
    """The criterion, which has seen the data with this model where it uses data.

    Raises:
        CriterionError: the criterion can't be used with this model or these data.
    """
    found = criteria.create(request.importance) if isinstance(request.importance, str) else request.importance
    if request.data is not None and hasattr(found, "accumulate"):
        try:
            found.accumulate(model, request.data, request.loss_fn)
        except (KeyError, AttributeError, NotImplementedError) as error:
            raise criteria.CriterionError(
                f"{request.criterion} can't take this model's layers ({described(error)}); choose another criterion, "
                "or remove what computes weights from other tensors first (such as torch.nn.utils.remove_weight_norm)"
            ) from error
    return found


def scored(
    coupling: Coupling, model: nn.Module, criterion: Criterion, name: str, only: Collection[str] | None = None
) -> tuple[list[Bundle], Mapping[str, str]]:
    """The scored groups; or no groups, and those that can't be scored with the reason.

    Args:
        coupling: the groups.
        model: whose layers the criterion is shown.
        criterion: group -> one score a channel.
        name: the criterion's name, for messages.
        only: the names of the groups to score; by default all are.

    Raises:
        CriterionError: no group at all can be scored.
        InputError: something came out that is not one finite score a channel.
    """
    groups = coupling.groups_of(model)
    scores: dict[str, Tensor] = {}
    unscored: dict[str, criteria.CriterionError] = {}
    wanted = coupling.names if only is None else [group for group in coupling.names if group in only]
    with _as_evaluated(model):
        for group in wanted:
            try:
                found = _called(criterion, groups(group), name, group)
                scores[group] = _checked(group, found, coupling.sizes[group])
            except criteria.CriterionError as error:
                unscored[group] = error
    if unscored:
        if not scores:
            raise next(iter(unscored.values()))
        return [], {each: f"the criterion has no score for it ({error})" for each, error in unscored.items()}
    widths = {group: coupling.widths(group) for group in wanted}
    sizes = {group: range(unit, coupling.sizes[group] + 1, unit) for group, unit in coupling.units.items()}
    return [
        Bundle({group: scores[group] for group in names}, {group: widths[group] for group in names}, sizes)
        for names in coupling.linked
        if scores.keys() >= set(names)
    ], {}


@contextmanager
def _as_evaluated(model: nn.Module) -> Iterator[None]:
    """Have weights that are computed be those of evaluation mode, and put back what computing them writes.

    Spectral norm takes a step of its iteration whenever its weight is looked at in training mode.
    """
    with modes_kept(model), buffers_kept(model):
        for module in model.modules():
            module.training = False  # `eval` of the caller's own layers may do more than that
        yield


def structured(bundles: Iterable[Bundle], coupling: Coupling, model: nn.Module) -> list[Bundle]:
    """Return the bundles with their structures, which the isomorphic ranking needs and no other."""
    return [
        replace(bundle, structure=tuple(structure(coupling, model, name) for name in bundle.scores))
        for bundle in bundles
    ]


def structure(coupling: Coupling, model: nn.Module, name: str) -> Hashable:
    """Return what isomorphic pruning takes as the structure of a group; it ranks groups of one structure together.

    A structure is the kinds of layers that the channels run through, in the order of the model, what each does with
    them, and how many outputs one channel is. The last tells heads of attention from the hidden units of a perceptron,
    and large heads from small ones. A parameter of a module that is made of others counts as that module. Operations
    without weights, such as activations, are not looked at.
    """
    layers = dict(model.named_modules(remove_duplicate=False))
    members = coupling.members(name)
    owners = [each.layer if each.layer in layers else each.layer.rpartition(".")[0] for each in members]
    kinds = tuple((type(layers[path]).__name__, each.role) for path, each in zip(owners, members, strict=True))
    return kinds, coupling.widths(name)


def _called(criterion: Criterion, group: Any, name: str, layer: str) -> Any:
    """What the criterion gives; its failure is told with the layer that it is about.

    A failure of torch-pruning's or our own leaves the group alone. One of the caller's own is passed on.
    """
    try:
        return criterion(group)
    except (criteria.CriterionError, InputError):
        raise
    except Exception as error:
        if type(criterion).__module__.partition(".")[0] not in ("hfp", "torch_pruning"):
            raise InputError(f"the criterion failed on the channels of {layer} ({described(error)})") from error
        raise criteria.CriterionError(
            f"{name} can't score the channels of {layer} ({described(error)}); choose another criterion, or leave the "
            f"layer out (ignored_layers)"
        ) from error


def _checked(name: str, scores: Any, size: int) -> Tensor:
    if not isinstance(scores, Tensor) or scores.shape != (size,):
        found = f"shape {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(
            f"the criterion should give one score for each of the {size} channels of {name}; it gave {found}"
        )
    if scores.is_complex():
        raise InputError(f"the criterion's scores for {name} are complex numbers, which have no order")
    if not torch.isfinite(scores).all():
        raise InputError(f"the criterion's scores for {name} are not all finite")
    return scores.detach()
