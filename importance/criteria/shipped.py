"""Use torch-pruning's own criteria, with their errors corrected."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from hfp.importance.bases.accumulated import AccumulatedImportance
from hfp.importance.capture.batches import Pass
from hfp.importance.capture.gradient import mean_gradient_of
from hfp.importance.capture.moments import GradientMoments, check_real, wide
from hfp.importance.capture.per_sample import gradient_moments_of
from hfp.importance.errors import CriterionError
from hfp.importance.groups.members import members, parameter_name, root_name, scoring, width
from hfp.importance.options import check_options
from hfp.layers.products import computed_weight, multiplies_inputs, reads_single_channels

Gradients = Mapping[Tensor, Tensor]
"""These are what a criterion finds in `.grad` of some parameters, in place of what is there."""


class ShippedImportance(tp.importance.Importance):  # type: ignore[misc]
    """Score with one of torch-pruning's criteria, and raise an error where it would skip a group in silence.

    The criterion gets a copy of the group, since some criteria sort its index lists. Weights of half precision are
    scored in float32, because not every operation that criteria use is there for less. Magnitudes, Taylor and Hessian
    scores are also given to what torch-pruning passes over or fails on, by the same formula: bare parameters,
    embeddings, recurrent layers, grouped transposed convolutions, and convolutions of one input and several outputs a
    group. Distances between filters are those of the dense convolution that a grouped one equals.

    Args:
        inner: one of torch-pruning's criteria.

    >>> import torch_pruning as tp
    >>> from hfp.importance import ShippedImportance
    >>> criterion = ShippedImportance(tp.importance.GroupMagnitudeImportance(p=1))
    """

    def __init__(self, inner: tp.importance.Importance) -> None:
        self.inner = inner

    def __call__(self, group: Any) -> Tensor:
        """Return the scores of the group's channels, `[width]`.

        Raises:
            CriterionError: the criterion gives no scores for the group, which torch-pruning would skip, or another
                number of scores than there are channels; or weights are not finite.
        """
        return _scores(self.inner, group, {})


class _ReadsGradients(AccumulatedImportance):
    """The base of torch-pruning's criteria that read `.grad`, which copies of the parameters have while they score."""

    def __init__(self, inner: tp.importance.Importance) -> None:
        super().__init__()
        self.inner = inner

    @abstractmethod
    def _read(self, name: str) -> Tensor:
        """Return what the criterion is to find in `.grad` of this parameter."""

    @scoring
    def __call__(self, group: Any) -> Tensor:
        """Return the scores of the group's channels, `[width]`.

        Raises:
            CriterionError: nothing has been accumulated, it was accumulated on another model, a layer computes its
                weight and there are no estimates of it, or weights are complex.
        """
        shown = {item.dep.target.module for item in group if isinstance(item.dep.target.module, nn.Module)}
        found: dict[nn.Parameter, str] = {}
        for member in members(group):
            if member.layer in shown and computed_weight(member.layer) is not None:
                self._read(f"{member.name}.weight".lstrip("."))  # torch-pruning finds no `.grad` there
            for name, parameter in _parameters_of(member.layer):
                found[parameter] = parameter_name(group, parameter, f"{member.name}.{name}".rstrip("."))
        gradients = {parameter: _fitting(self._read(name), parameter, name) for parameter, name in found.items()}
        return _scores(self.inner, group, gradients)


class TaylorImportance(_ReadsGradients):
    """Score with torch-pruning's first-order criterion on the mean gradient.

    Cost: one forward and one backward.

    Args:
        options: the options of `torch_pruning.importance.GroupTaylorImportance`.

    Source: Molchanov et al., CVPR 2019.

    >>> import torch
    >>> from hfp.importance import TaylorImportance
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> batches = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    >>> criterion = TaylorImportance()
    >>> criterion.accumulate(model, batches, torch.nn.functional.cross_entropy)
    >>> criterion.samples
    8
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(tp.importance.GroupTaylorImportance(**options))

    def _measure(self, model: nn.Module, batches: Iterable[Any], run: Pass) -> GradientMoments:
        return mean_gradient_of(model, batches, run)

    def _read(self, name: str) -> Tensor:
        return self.statistics(name)[0]


class HessianImportance(_ReadsGradients):
    """Score with torch-pruning's second-order criterion on the mean of squared per-sample gradients, over all samples.

    torch-pruning's own accumulation only keeps the last sample.

    Cost: the same as that of the empirical Fisher.

    Args:
        options: the options of `torch_pruning.importance.GroupHessianImportance`.

    Source: LeCun et al., Optimal Brain Damage, 1989.

    >>> import torch
    >>> from hfp.importance import HessianImportance
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> batches = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    >>> criterion = HessianImportance()
    >>> criterion.accumulate(model, batches, torch.nn.functional.cross_entropy)
    >>> criterion.samples
    8
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(tp.importance.GroupHessianImportance(**options))

    def _measure(self, model: nn.Module, batches: Iterable[Any], run: Pass) -> GradientMoments:
        return gradient_moments_of(model, batches, run)

    def _read(self, name: str) -> Tensor:
        return self.statistics(name)[1]


class RandomImportance(tp.importance.Importance):  # type: ignore[misc]
    """Score by uniform random numbers.

    They come from a generator of the criterion's own, so that the caller's random state is not used up.

    Args:
        seed: the seed of the generator.

    >>> from hfp.importance import RandomImportance
    >>> criterion = RandomImportance(seed=1)
    """

    def __init__(self, seed: int = 0) -> None:
        check_options(seed=seed)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, group: Any) -> Tensor:
        """Return new scores of the group's channels, `[width]`, at every call."""
        return torch.rand(width(group), generator=self._generator)


@scoring
def _scores(criterion: tp.importance.Importance, group: Any, gradients: Gradients) -> Tensor:
    """Return what one of torch-pruning's criteria gives a group whose parameters have these gradients, `[width]`."""
    compares = isinstance(criterion, tp.importance.FPGMImportance)
    misread = any(_is_misread(item) for item in group.items)
    scores = None if misread else criterion(_private(group, compares, gradients))
    if scores is None:
        scores = _by_table(group, criterion, gradients)
    if scores is None:
        raise CriterionError(
            f"{type(criterion).__name__} has nothing to score in the group of {root_name(group)!r}: "
            "choose another criterion"
        )
    if scores.shape != (width(group),):
        raise CriterionError(
            f"{type(criterion).__name__} gives {list(scores.shape)} scores for the {width(group)} channels of "
            f"{root_name(group)!r}: choose another criterion"
        )
    if scores.isnan().any():
        _check_finite(group)
    return scores.nan_to_num(nan=0.0)  # scores that are all 0 were divided by their mean


def _check_finite(group: Any) -> None:
    for member in members(group):
        for name, tensor, _ in member.tensors():
            if not torch.isfinite(tensor).all():
                raise CriterionError(f"{name!r} holds values that are not finite: its channels have no order")


def _fitting(value: Tensor, parameter: Tensor, name: str) -> Tensor:
    if value.shape != parameter.shape:
        raise CriterionError(
            f"{name!r} has shape {list(parameter.shape)} and its estimates {list(value.shape)}: "
            "they are of another model; call reset() and accumulate() after pruning"
        )
    check_real(name, parameter)
    return value.to(wide(parameter.detach()))


def _is_misread(item: Any) -> bool:
    """Return whether torch-pruning takes the outputs of one group of a transposed convolution for those of all."""
    layer = item.dep.target.module
    return multiplies_inputs(layer) and 1 < layer.groups < layer.out_channels


def _fails_on(item: Any) -> bool:
    """Return whether torch-pruning takes a layer for a depthwise one, although each input has several outputs."""
    layer = item.dep.target.module
    reads = item.dep.handler == tp.prune_conv_in_channels and reads_single_channels(layer)
    return reads and not multiplies_inputs(layer)


def _parameters_of(layer: nn.Module | nn.Parameter) -> Iterable[tuple[str, nn.Parameter]]:
    return [("", layer)] if isinstance(layer, nn.Parameter) else layer.named_parameters(recurse=False)


def _entries_of(criterion: tp.importance.Importance, tensor: Tensor, gradients: Gradients) -> Tensor | None:
    """Return what one of torch-pruning's criteria sums over a channel's weights; None where this is not known."""
    if type(criterion) is tp.importance.GroupMagnitudeImportance:
        return tensor.detach().abs().double().cpu().pow(criterion.p)
    given = gradients.get(tensor, tensor.grad if tensor.is_leaf else None)
    if given is None:
        return None
    weight, gradient = (value.detach().double().cpu() for value in (tensor, given))
    if type(criterion) is tp.importance.GroupTaylorImportance and not criterion.multivariable:
        return (weight * gradient).abs()
    return weight.square() * gradient if type(criterion) is tp.importance.GroupHessianImportance else None


def _by_table(group: Any, criterion: tp.importance.Importance, gradients: Gradients) -> Tensor | None:
    """Return the mean of the members' sums over a channel's weights, `[width]`, divided by its own mean.

    The result is None where nothing holds channels, or the criterion sums something else.
    """
    found: list[Tensor] = []
    for member in members(group):
        for _, tensor, slot in member.tensors():
            entries = _entries_of(criterion, tensor, gradients)
            if entries is not None and (tensor.dim() > 1 or isinstance(member.layer, nn.Parameter)):
                scores = torch.zeros(width(group), dtype=torch.float64)
                member.add_to(scores, member.sums(entries, slot))
                found.append(scores)
    if not found:
        return None
    mean = torch.stack(found).mean(0)
    return (mean / mean.mean()).float()


def _private(group: Any, dense: bool, gradients: Gradients) -> Any:
    twin = copy(group)
    twin._group = []
    for item in group.items:
        dependency = _readable(item.dep, gradients)
        mine = type(item)(_ungrouped(dependency) if dense or _fails_on(item) else dependency, list(item.idxs))
        mine.root_idxs = list(item.root_idxs)
        twin._group.append(mine)
    return twin


def _readable(dependency: Any, gradients: Gradients) -> Any:
    """Return a dependency whose layer is a copy with the given gradients, and in float32 where it has fewer bits.

    It is the dependency itself where there is nothing to give.
    """
    layer = dependency.target.module
    held = list(layer.parameters(recurse=False)) if isinstance(layer, nn.Module) else []
    if all(parameter not in gradients and wide(parameter) is parameter for parameter in held):
        return dependency
    return _with_parameters(
        dependency,
        {name: None if one is None else _copied(one, gradients.get(one)) for name, one in layer._parameters.items()},
    )


def _ungrouped(dependency: Any) -> Any:
    """Return a dependency whose layer is the dense convolution that a grouped one equals, or itself.

    torch-pruning fails on the inputs of a grouped convolution where it compares filters, and on those of one in which
    each has several outputs. It passes over depthwise ones.
    """
    layer = dependency.target.module
    if not isinstance(layer, nn.modules.conv._ConvNd) or not 1 < layer.groups < layer.out_channels:
        return dependency
    weight = nn.Parameter(_dense(layer, layer.weight), requires_grad=False)
    weight.grad = None if layer.weight.grad is None else _dense(layer, layer.weight.grad)
    found = _with_parameters(dependency, {**layer._parameters, "weight": weight})
    found.target.module.groups = 1
    return found


def _dense(layer: nn.modules.conv._ConvNd, values: Tensor) -> Tensor:
    """Return what a grouped convolution's weight holds in the shape of a dense one, `[out, in, ..]`; the rest is 0."""
    dense = values.new_zeros(layer.out_channels, layer.in_channels, *layer.kernel_size)
    blocks = zip(values.chunk(layer.groups), dense.chunk(layer.groups), strict=True)
    for group, (block, rows) in enumerate(blocks):
        rows.chunk(layer.groups, 1)[group].copy_(block)
    return dense


def _with_parameters(dependency: Any, parameters: dict[str, nn.Parameter | None]) -> Any:
    """Return a copy of a dependency whose layer is a copy with these parameters."""
    twin, node, whole = copy(dependency), copy(dependency.target), dependency.target.module
    layer = whole.__new__(type(whole))  # copy() refuses layers whose weights are computed
    layer.__dict__ = {**whole.__dict__, "_parameters": parameters}
    node.module, twin.target = layer, node
    return twin


def _copied(parameter: nn.Parameter, gradient: Tensor | None) -> nn.Parameter:
    made = nn.Parameter(wide(parameter.detach()), requires_grad=parameter.requires_grad)
    gradient = parameter.grad if gradient is None else gradient
    made.grad = None if gradient is None else gradient.to(made)
    return made
