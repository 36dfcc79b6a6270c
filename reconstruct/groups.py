"""The coupled groups of a model, traced once: any number of plans turned into index maps without tracing again."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from hfp.reconstruct._closure import Closure, Graph, Site, closure, in_model, units
from hfp.reconstruct._effects import Formula, Outcome, learn, merge, try_out
from hfp.reconstruct._running import run_error, widened
from hfp.reconstruct._twin import check_tied, joined, tensors_of, tied
from hfp.reconstruct.compact import compact_model
from hfp.reconstruct.errors import MapError
from hfp.reconstruct.index_map import IndexMap, TensorMap
from hfp.reconstruct.plan import Plan


@dataclass(frozen=True)
class _Layer:
    """A layer or parameter that groups cut: its names in the model, and the formula of every way it is cut."""

    names: tuple[str, ...]
    formulas: Mapping[Site, Formula | None]

    def cut(self, gone: Mapping[Site, Tensor]) -> Outcome:
        outcomes = {}
        for site, formula in self.formulas.items():
            if site in gone:
                if bool(gone[site].all()):
                    raise MapError(f"{self.names[0]}: this plan leaves no channel; keep at least one")
                found = formula.outcome(gone[site]) if formula else try_out(site, gone[site], self.names[0])
                outcomes[site.handler.__name__] = found
        return merge(outcomes, self.names[0])


class ChannelGroups:
    """Coupled groups of a model: sets of layers whose channels must be removed together. Made by `trace`.

    Attributes:
        sizes: group name (its root layer) -> number of channels, in the order of the graph.
        units: group name -> int64 [channels], the unit of each channel. Channels of one unit must be kept or removed
            together: usually every channel is its own unit; in a group with a grouped convolution, a group norm or a
            reshape, several channels form one.
        skipped: root layers of groups that are left whole because they can't be pruned, with the reason.
    """

    def __init__(self, model: nn.Module, graph: Graph, groups: Mapping[str, Any]) -> None:
        self._model, self._groups = model, dict(groups)
        self._identity = IndexMap.identity(model)
        self._transient = {
            name: TensorMap.identity(tuple(tensor.shape))
            for name, tensor in tensors_of(model)
            if name not in self._identity.tensors
        }
        self._tied = tied(model)
        sizes = {name: len(group[0].idxs) for name, group in groups.items()}
        whole = {name: closure(graph, group[0].dep, sizes[name]) for name, group in groups.items()}
        self._closures = {name: in_model(found, model) for name, found in whole.items()}
        self._layers = _layers(model, self._closures)
        self.sizes: Mapping[str, int] = MappingProxyType(sizes)
        self.units: Mapping[str, Tensor] = MappingProxyType(
            {name: units(found, sizes[name]) for name, found in whole.items()}
        )
        self.skipped: Mapping[str, str] = MappingProxyType({})

    @classmethod
    def trace(
        cls, model: nn.Module, example_inputs: Any, ignored_layers: Iterable[nn.Module | str] = ()
    ) -> ChannelGroups:
        """Copy the model, build its dependency graph, list the coupled groups and try them.

        Groups whose pruning leaves a model that does not run on the example inputs are left whole and named in
        `skipped`.

        Args:
            model: the full model; not changed. On the meta device no weights are needed.
            example_inputs: what the model is called with, on its device; a tuple is unpacked, a dict are keywords.
                A batch of one is doubled, because torch-pruning misreads shapes of batch one.
            ignored_layers: modules of `model`, or their names, whose output channels stay.

        Raises:
            MapError: an ignored layer is not in the model, the model does not run on the inputs or can't be traced,
                or nothing can be pruned.
        """
        own = copy.deepcopy(model).eval()
        for parameter in own.parameters():
            parameter.requires_grad_(parameter.is_floating_point())  # a frozen model would be traced as empty
        inputs = widened(example_inputs)
        error = run_error(own, inputs)
        if error is not None:
            raise MapError(f"the model does not run on the example inputs ({error})")
        ignored = _resolve(model, own, ignored_layers)
        graph = _graph(own, inputs)
        found, failed = graph.coupled_groups(ignored)
        groups = cls(own, graph, found)
        groups._leave_out_what_fails(inputs, failed)
        if not groups.sizes:
            raise MapError(f"no layer of this model can be pruned; {dict(groups.skipped) or 'all layers are ignored'}")
        return groups

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each group's root layer, in the order of the graph."""
        return tuple(self.sizes)

    @property
    def model(self) -> nn.Module:
        """The full-size copy, in evaluation mode, that the groups point to; `load` fills it."""
        return self._model

    def group(self, name: str) -> Any:
        """The torch-pruning Group of all channels, to hand to a criterion.

        Raises:
            MapError: no group has this name.
        """
        if name not in self.sizes:
            raise MapError(f"no coupled group is called {name!r}; there are {', '.join(self.names[:6])}, ...")
        return self._groups[name]

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put weights into the copy that the groups point to, so that criteria which read weights see them.

        Raises:
            MapError: `state` is no full state of this model.
        """
        self._identity.check_full(state)
        with torch.no_grad():
            for name, tensor in self._model.state_dict(keep_vars=True).items():
                tensor.copy_(state[name])

    def plan(self, kept: Mapping[str, Sequence[int] | Tensor]) -> Plan:
        """A checked plan; groups that are left out keep everything.

        Raises:
            MapError: unknown groups; channels that are empty, out of range, repeated or not ascending; or a unit
                that is kept in part.
        """
        plan = Plan(self.sizes, {name: tuple(map(int, channels)) for name, channels in kept.items()})
        self._check_units(plan)
        return plan

    def index_map(self, plan: Plan) -> IndexMap:
        """The map that pruning by `plan` has, without pruning or tracing.

        Raises:
            MapError: the plan is of other groups, keeps a unit in part, leaves a layer without channels, or can't be
                mapped.
        """
        if plan.sizes != self.sizes:
            raise MapError("this plan was made for other coupled groups")
        self._check_units(plan)
        gone = self._gone(plan)
        kept: dict[str, dict[int, Tensor]] = {}
        attributes: dict[str, dict[str, Any]] = {}
        for layer in self._layers:
            outcome = layer.cut(gone)
            for prefix in layer.names:
                for (local, dim), indices in outcome.kept.items():
                    kept.setdefault(joined(prefix, local), {})[dim] = indices
            for (local, key), value in outcome.attributes.items():
                attributes.setdefault(joined(layer.names[0], local), {})[key] = value
        cut = {name: _tensor_map(self._whole(name), dims) for name, dims in kept.items()}
        check_tied(self._tied, {**self._identity.tensors, **self._transient, **cut})
        tensors = {name: cut.get(name, whole) for name, whole in self._identity.tensors.items()}
        return IndexMap(tensors, attributes, {name: cut[name] for name in self._transient if name in cut})

    def _check_units(self, plan: Plan) -> None:
        for name, labels in self.units.items():
            number = int(labels.max()) + 1
            if number == self.sizes[name]:
                continue
            inside = torch.bincount(labels[list(plan.kept[name])], minlength=number)
            partial = (inside > 0) & (inside < torch.bincount(labels))
            if partial.any():
                together = (labels == int(partial.nonzero()[0])).nonzero().view(-1).tolist()
                raise MapError(f"{name}: channels {together} must be kept or removed together (see `units`)")

    def _whole(self, name: str) -> TensorMap:
        return self._identity.tensors.get(name) or self._transient[name]

    def _gone(self, plan: Plan) -> dict[Site, Tensor]:
        """Which channels of each site go, over all groups, in original numbering."""
        gone: dict[Site, Tensor] = {}
        for name, cuts in self._closures.items():
            if name not in self.sizes or len(plan.kept[name]) == self.sizes[name]:
                continue
            roots = ~_marked(torch.tensor(plan.kept[name]), self.sizes[name])
            parts: dict[tuple[int, int], Tensor] = {}
            for site, pairs in cuts.items():
                size = _channels(site, pairs)
                if (id(pairs), size) not in parts:
                    parts[id(pairs), size] = _marked(pairs[roots[pairs[:, 1]], 0], size)
                part = parts[id(pairs), size]
                gone[site] = gone[site] | part if site in gone else part
        return gone

    def _leave_out_what_fails(self, inputs: Any, failed: Mapping[str, str]) -> None:
        self.skipped = MappingProxyType(dict(failed))
        if self._trial_error(self.names, inputs) is None:
            return
        skipped = {name: error for name in self.names if (error := self._trial_error([name], inputs)) is not None}
        self.skipped = MappingProxyType({**failed, **skipped})
        self.sizes = MappingProxyType({name: size for name, size in self.sizes.items() if name not in skipped})
        self.units = MappingProxyType({name: self.units[name] for name in self.sizes})
        error = self._trial_error(self.names, inputs)
        if error is not None:
            raise MapError(f"each coupled group can be pruned alone, but not all together ({error})")

    def _trial_error(self, names: Iterable[str], inputs: Any) -> str | None:
        """Why the model with half of the units of these groups removed does not run; None if it does."""
        halves = {}
        for name in names:
            labels = self.units[name]
            if int(labels.max()) == 0:
                return "all its channels must stay together"
            halves[name] = (labels % 2 == 0).nonzero().view(-1)
        try:
            model = compact_model(self._model, self.index_map(self.plan(halves)))
        except MapError as error:
            return str(error)
        return run_error(model, inputs)


def _graph(model: nn.Module, inputs: Any) -> Graph:
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # about unwrapped parameters and unknown operations: groups are tried instead
        try:
            return Graph().build_dependency(model, inputs)
        except Exception as error:
            raise MapError(f"torch-pruning can't trace this model ({type(error).__name__}: {error})") from error


def _layers(model: nn.Module, closures: Mapping[str, Closure]) -> list[_Layer]:
    names: dict[int, list[str]] = {}
    for name, part in (*model.named_modules(remove_duplicate=False), *model.named_parameters(remove_duplicate=False)):
        names.setdefault(id(part), []).append(name)
    sites: dict[int, dict[Site, Formula | None]] = {}
    for cuts in closures.values():
        for site, pairs in cuts.items():
            key = id(site.node.module)
            if site not in sites.setdefault(key, {}):
                sites[key][site] = learn(site, _channels(site, pairs), names[key][0])
    return [_Layer(tuple(names[key]), formulas) for key, formulas in sites.items()]


def _channels(site: Site, pairs: Tensor) -> int:
    return site.channels or int(pairs[:, 0].max()) + 1


def _marked(indices: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.bool).index_fill_(0, indices, True)


def _tensor_map(whole: TensorMap, kept: Mapping[int, Tensor]) -> TensorMap:
    return TensorMap(whole.shape, tuple(kept.get(dim) for dim in range(len(whole.shape))))


def _resolve(model: nn.Module, own: nn.Module, layers: Iterable[nn.Module | str]) -> list[nn.Module]:
    names = {id(module): name for name, module in model.named_modules()}
    modules = dict(own.named_modules())
    found: list[nn.Module] = []
    for layer in layers:
        name = layer if isinstance(layer, str) else names.get(id(layer))
        if name is None or name not in modules:
            raise MapError(f"ignored layer {layer!r} is not in the model")
        found.extend(modules[name].modules())
    return found
