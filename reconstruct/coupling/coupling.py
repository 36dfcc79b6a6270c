"""Find the coupled groups of any model by following every channel through its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from difflib import get_close_matches
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_pruning.dependency.group import Group

from hfp.errors import counted
from hfp.layers.calling import is_recurrent
from hfp.layers.products import PRODUCTS, weight_dims
from hfp.reconstruct.coupling.changes import cut_lines, left_alone, suspects
from hfp.reconstruct.coupling.checking import NotRunning, compare, confirmed, masked_output, masking
from hfp.reconstruct.coupling.fitting import fit
from hfp.reconstruct.coupling.members import Member, members, ties
from hfp.reconstruct.coupling.rules.labels import Array
from hfp.reconstruct.coupling.torch_groups import TorchGroups
from hfp.reconstruct.coupling.tracing import ShapesOnly, Trace, TracedCall, check_followable, trace
from hfp.reconstruct.coupling.trials import trial, try_out
from hfp.reconstruct.coupling.twins import applied, twins_of
from hfp.reconstruct.coupling.wiring import CoupledGroup, Gone, Wiring, layer_bindings
from hfp.reconstruct.errors import MapError
from hfp.reconstruct.maps.index_map import IndexMap
from hfp.reconstruct.maps.plan import Plan, numbers_of
from hfp.reconstruct.models.compact import compact_model
from hfp.reconstruct.models.copying import copied
from hfp.reconstruct.models.running import run_error
from hfp.reconstruct.models.twin import computed, like, tensors_of

LAST_MAPS = 8  # this many index maps are kept, since clients of one ratio often have one plan
MOST_CHECKS = 12  # at most this many checks leave alone what they find


class Coupling:
    """The groups of channels that can be removed from a model, each of them a set of indices that must go together.

    torch-pruning's dependency graph follows autograd's graph and guesses how indices map. This class follows labels of
    single indices through every operation instead: reshapes, splits, concatenations, windows, attention heads, weights
    that are computed from parameters. A channel of a group may be several of a layer's outputs, such as an attention
    head or a group of a convolution. `Coupling.trace` makes a coupling.

    Attributes:
        counts: whether `costs` counts from the kept channels alone, as it does unless it was found to miscount.
        sizes: the number of channels of each group. A group has the name of the layer that writes the channels.
        units: groups that can only lose a multiple of so many channels, because an operation needs its sizes to be
            multiples. Most groups lose any number.
        linked: every group once, together with those that must lose the same share of their channels because the
            model's code takes their sizes to be tied. Most groups are alone.

    >>> import torch
    >>> from hfp.reconstruct import Coupling
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> coupling = Coupling.trace(model, torch.randn(2, 4))
    >>> coupling
    <Coupling: 6 channels in 1 coupled group; 1 layer keeps all outputs>
    >>> coupling.left_alone["2"]
    'it is an output of the model'
    """

    def __init__(self, wiring: Wiring, example_inputs: Any, counts: bool = True) -> None:
        self.counts = counts
        self._wiring = wiring
        self._inputs = example_inputs
        self.sizes: Mapping[str, int] = MappingProxyType({name: len(g.classes) for name, g in wiring.groups.items()})
        self.linked: tuple[tuple[str, ...], ...] = wiring.linked
        self.units: Mapping[str, int] = MappingProxyType(wiring.units)
        self._maps: dict[tuple[tuple[str, tuple[int, ...]], ...], IndexMap] = {}

    def __repr__(self) -> str:
        """Return one line, however many groups there are."""
        groups = f"{counted(sum(self.sizes.values()), 'channel')} in {counted(len(self.sizes), 'coupled group')}"
        alone = counted(len(self.left_alone), "layer")
        return f"<Coupling: {groups}; {alone} keep{'s' if len(self.left_alone) == 1 else ''} all outputs>"

    @classmethod
    def trace(
        cls,
        model: nn.Module,
        example_inputs: Any,
        ignored_layers: Iterable[nn.Module | str] | nn.Module | str = (),
        prune_heads: bool = True,
        whole_tensors: Mapping[str, str] = MappingProxyType({}),
        leave: Callable[[Coupling], Mapping[str, str]] | None = None,
    ) -> Coupling:
        """Trace a model once, without weights where it runs without.

        Args:
            model: the full model; it is not changed.
            example_inputs: what the model is called with. A tuple or list is unpacked into arguments, a dictionary into
                keywords.
            ignored_layers: modules of `model`, or their names, whose output channels stay; one may be given alone.
            prune_heads: whether to remove whole heads, and not a part of every head, where a dimension is read as heads
                times size. True by default. With False, heads of `scaled_dot_product_attention` that can't lose a part
                stay whole.
            whole_tensors: parameters and buffers that keep all their entries, by name, with the reason.
            leave: a function that is shown the groups before smaller models are tried, and says which of them stay
                whole, with the reason.

        Raises:
            MapError: the model is compiled, does not run on the inputs or returns no tensor, or an ignored layer or a
                whole tensor is not in it.
        """
        ignored = _names(model, ignored_layers)
        check_followable(model)
        own, inputs, found = _followed(model, example_inputs)
        fixed = tuple(
            (line, "it is an ignored layer")
            for name, lines in found.tensors.items()
            if name.rpartition(".")[0] in ignored
            for line in _written(own, name, lines)
            if line is not None
        )
        unknown = [name for name in whole_tensors if name not in found.tensors]
        if unknown:
            raise MapError(f"the model has no tensor {unknown[0]!r}; {_nearest(unknown[0], found.tensors)}")
        fixed += tuple(
            (line, reason) for name, reason in whole_tensors.items() for line in found.tensors[name] if line is not None
        )
        if not prune_heads:
            stay = "the heads of attention stay, and a part of each can't be removed exactly"
            fixed += tuple((heads, stay) for heads in found.labels.heads)
        wiring = Wiring(own, found, None if prune_heads else False, fixed, tuple(layer_bindings(own, found)))
        untried = cls(wiring, inputs)
        return untried.leaving(leave(untried) if leave is not None else {})

    @property
    def names(self) -> tuple[str, ...]:
        """Return the groups' names, in the order of the layers."""
        return tuple(self.sizes)

    def groups_of(self, model: nn.Module) -> Callable[[str], Group]:
        """Return a function that gives the group of a name in torch-pruning's form, for criteria.

        The groups point to the layers of `model`, which is this coupling's model or one with the same layers and
        shapes. A criterion gives one score for each channel of a group. Such a group is for scoring; `index_map`
        removes channels. The function raises a `MapError` where no group has the name.

        Raises:
            MapError: `model` has other parameters or shapes than this coupling's.
        """
        shapes = [{n: tuple(p.shape) for n, p in each.named_parameters()} for each in (model, self._wiring.model)]
        if shapes[0] != shapes[1]:
            raise MapError(f"this {type(model).__name__} has other parameters or shapes than the model that was traced")
        groups = TorchGroups(self._wiring, model)
        return lambda name: groups.group(self._group(name))

    def members(self, name: str) -> tuple[Member, ...]:
        """The layers that a group's channels run through, in the order of the model, each once per role.

        >>> import torch
        >>> from hfp.reconstruct import Coupling
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        >>> for member in Coupling.trace(model, torch.randn(2, 4)).members("0"):
        ...     print(member)
        Member(layer='0', role='writes', indices=6, size=6)
        Member(layer='2', role='reads', indices=6, size=6)
        """
        return members(self._wiring, self._group(name))

    def ties(self, name: str) -> tuple[str, ...]:
        """The operations that make channels of different layers go together, such as "add in layer1.0"."""
        return ties(self._wiring, self._group(name))

    def _group(self, name: str) -> CoupledGroup:
        if name not in self._wiring.groups:
            raise MapError(f"no coupled group is called {name!r}; {_nearest(name, self._wiring.groups)}")
        return self._wiring.groups[name]

    def plan(self, kept: Mapping[str, Sequence[int] | Tensor]) -> Plan:
        """Return a checked plan; groups that are left out keep everything.

        Args:
            kept: the kept channels by the group's name, ascending.

        Raises:
            MapError: a group is unknown; channels are empty, out of range, repeated or not ascending; linked groups
                lose different shares; or a group loses another number of channels than it can.
        """
        plan = Plan(self.sizes, {name: numbers_of(name, channels) for name, channels in kept.items()})
        for names in self.linked:
            shares = {name: len(plan.kept[name]) / self.sizes[name] for name in names}
            if max(shares.values()) - min(shares.values()) > 1e-9:
                raise MapError(f"these groups must keep the same share of their channels, not {shares}")
        for name, unit in self.units.items():
            lost = self.sizes[name] - len(plan.kept[name])
            if lost % unit:
                raise MapError(f"{name} can lose a multiple of {unit} channels, not {lost}")
        return plan

    def costs(self, kept: Mapping[str, Sequence[int]]) -> Mapping[str, int]:
        """Count what is left of the model when these channels are kept, without building or running anything.

        Multiply-accumulates are counted for the example inputs that were traced. Groups that are left out keep
        everything, and the channels are not checked.

        Returns:
            The multiply-accumulates ("macs"), parameters ("params") and bytes of the state ("bytes").

        >>> import torch
        >>> from hfp.reconstruct import Coupling
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        >>> Coupling.trace(model, torch.randn(1, 4)).costs({"0": [1, 2, 5]})
        {'macs': 18, 'params': 23, 'bytes': 92}
        """
        return self._wiring.costs(self._wiring.gone(kept))

    def index_map(self, plan: Plan) -> IndexMap:
        """Return the map of pruning by a plan.

        Raises:
            MapError: the plan is of other groups.
        """
        if dict(plan.sizes) != dict(self.sizes):
            raise MapError("this plan was made for other coupled groups")
        key = tuple(plan.kept.items())
        found = self._maps.get(key)
        if found is None:
            found = self._wiring.index_map(self._wiring.gone(plan.kept))
            while len(self._maps) >= LAST_MAPS:
                self._maps.pop([*self._maps][0], None)  # runs in several threads may share a coupling
            self._maps[key] = found
        return found

    def masked_output(self, model: nn.Module, example_inputs: Any, index_map: IndexMap) -> Any:
        """Return what the full model computes without the channels that a map removes.

        Its compact model must compute the same. Entries of the removed channels are zero, and statistics over channels
        (layer norms and the like) are taken over those that are left. The map is one of this coupling: another coupling
        may not have the same groups, such as heads, and then takes statistics over all of them. `hfp.prune` removes
        groups of a coupling that was `verified`.
        """
        return masked_output(self._wiring, model, example_inputs, self._wiring.removed_by(index_map), index_map)

    def masked(self, model: nn.Module, index_map: IndexMap) -> AbstractContextManager[None]:
        """Let the full model take statistics (layer norms and the like) over the kept channels inside, for one call.

        Entries of the removed channels must be zero. `masked_output` does all of it with a copy of the weights; this is
        for models whose weights are not in memory at once.
        """
        return masking(self._wiring, model, self._wiring.removed_by(index_map))

    def compact_skeleton(self, plan: Plan) -> tuple[nn.Module, Any]:
        """Return the compact model of a plan, and inputs for it, to count costs with.

        It has no weights where it runs without.
        """
        return compact_model(self._wiring.model, self.index_map(plan)), self._inputs

    @cached_property
    def left_alone(self) -> Mapping[str, str]:
        """Return, by layer, why none of its output channels can be removed, in the order of the model."""
        found = {}
        for name, module in self._wiring.model.named_modules():
            weight = f"{name}.weight" if name else "weight"
            if isinstance(module, PRODUCTS) and weight in self._wiring.trace.tensors:
                reason = self.reason(weight, weight_dims(module)[0])
                if reason is not None:
                    found[name] = reason
        return found

    def widths(self, name: str) -> tuple[int, ...]:
        """Return how many outputs one channel of a group is, of its own layer and of every layer that the group
        reaches.

        Layers of which the group's channels hold different numbers are left out.
        """
        return tuple(sorted({self.layer_channels(name), *self._reached.get(name, ())}))

    def layer_channels(self, name: str) -> int:
        """Return how many channels of its root layer one channel of a group holds."""
        group = self._group(name)
        return int((self._wiring.classes.of[group.line] == group.classes[0]).sum())

    def longest_run(self, name: str) -> int:
        """Return how many adjacent outputs of its root layer are one channel of a group, such as those of a head."""
        group = self._group(name)
        places = np.flatnonzero(self._wiring.classes.of[group.line] == group.classes[0])
        return max(len(run) for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1))

    @cached_property
    def _reached(self) -> Mapping[str, set[int]]:
        """Return, by group, how many outputs of each convolution, linear or recurrent layer one of its channels is."""
        groups = list(self._wiring.groups.values())
        group_of = np.full(self._wiring.trace.labels.count, -1)
        for place, group in enumerate(groups):
            group_of[list(group.classes)] = place
        found: dict[str, set[int]] = {}
        for line in self._output_lines():
            classes, counts = np.unique(self._wiring.classes.of[line], return_counts=True)
            for place in set(group_of[classes].tolist()) - {-1}:
                each = counts[group_of[classes] == place]
                if len(each) == len(groups[place].classes) and (each == each[0]).all():
                    found.setdefault(groups[place].name, set()).add(int(each[0]))
        return found

    def _output_lines(self) -> Iterator[Array]:
        """Yield the outputs of every layer; those of recurrent layers are sizes of their own, and no gates."""
        for name, module in self._wiring.model.named_modules():
            lines = self._wiring.trace.tensors.get(f"{name}.weight".lstrip("."))
            line = lines[weight_dims(module)[0]] if isinstance(module, PRODUCTS) and lines is not None else None
            if line is not None:
                yield line
        yield from (part.line for part in self._wiring.bindings if part.attribute in ("hidden_size", "proj_size"))

    def reason(self, tensor: str, dim: int) -> str | None:
        """Return why a dimension of a parameter or buffer keeps all its indices; None when it can lose some.

        Raises:
            MapError: the model has no such tensor.
        """
        if tensor not in self._wiring.trace.tensors:
            raise MapError(f"the model has no tensor {tensor!r}; {_nearest(tensor, self._wiring.trace.tensors)}")
        if not self._wiring.trace.uses(tensor):
            return "the forward pass does not use it"
        return self._wiring.classes.reason(self._wiring.trace.tensors[tensor][dim])

    def factors_kept(self, layer: str) -> Mapping[int, str]:
        """Return, by size, why a factor of a layer's outputs keeps all its indices, where a reshape takes them apart.

        A layer that writes heads times channels has both as factors.
        """
        line = self._wiring.trace.tensors[f"{layer}.weight"][weight_dims(self._wiring.model.get_submodule(layer))[0]]
        found: dict[int, str] = {}
        for product in self._wiring.trace.labels.products:
            if line is not None and np.array_equal(product.whole, line):
                for size, factor in zip(product.sizes, product.factors, strict=True):
                    reason = None if factor is None else self._wiring.classes.reason(factor)
                    if reason is not None:
                        found.setdefault(size, reason)
        return found

    def leaving(self, reasons: Mapping[str, str]) -> Coupling:
        """Return the coupling in which some groups cannot be removed; `reasons` are by the group's name."""
        lines = [(self._group(name), reason) for name, reason in reasons.items()]
        return self._fitted(self._wiring.extended(fixed=[(np.array(group.classes), reason) for group, reason in lines]))

    @cached_property
    def unknown(self) -> frozenset[str]:
        """Return the operations of the forward pass that are not followed; the channels that reach them stay."""
        return self._wiring.trace.unknown

    def checked(self, model: nn.Module, example_inputs: Any, plan: Plan) -> Coupling:
        """Return this coupling if the compact model of a plan computes what it should.

        Args:
            model: the full model, with or without trained weights, but not on the meta device.
            example_inputs: what both are called with.
            plan: what to remove.

        Returns:
            This coupling, or else one that leaves alone what differs, or that says that `costs` counts wrongly.

        Raises:
            MapError: the compact model does not run, or differs where nothing is pruned.
        """
        gone = self._wiring.gone(plan.kept)
        found, macs = self._checked(model, example_inputs, gone, self.index_map(plan))
        if found is self and self.counts and macs != self.costs(plan.kept)["macs"]:
            return self.miscounting()
        return found

    def miscounting(self) -> Coupling:
        """Return the same coupling, which says that its `costs` are not those of the compact models."""
        return Coupling(self._wiring, self._inputs, counts=False)

    def verified(self, model: nn.Module, example_inputs: Any) -> Coupling:
        """Check with about 40 % of every group removed, for plans that are not known yet.

        Args:
            model: as for `checked`.
            example_inputs: as for `checked`, with at least two different samples.

        Returns:
            This coupling, or one that leaves more alone.

        Raises:
            MapError: `checked` would raise it, or nothing is left that can be pruned.
        """
        coupling = self
        for _ in range(MOST_CHECKS):
            gone = trial(coupling._wiring, seed=1)  # other shares than those of the trial that the trace ends with
            found, _ = coupling._checked(model, example_inputs, gone, coupling._wiring.index_map(gone))
            if found is coupling:
                break
            coupling = found
        else:
            raise MapError(f"after {MOST_CHECKS} checks compact models still compute something else")
        if not coupling.names:
            raise MapError(f"no layer of this model can be pruned: {coupling.why_nothing}")
        return coupling

    @property
    def why_nothing(self) -> str:
        """Return some reasons for which layers, or parameters where there are no layers, are left alone."""
        reasons = list(self.left_alone.values())
        if not reasons:
            wide = [(name, len(lines)) for name, lines in self._wiring.trace.tensors.items() if len(lines) > 1]
            reasons = [reason for name, rank in wide for dim in range(rank) if (reason := self.reason(name, dim))]
        return "; ".join(dict.fromkeys(reasons[-3:])) or "it has no channels"

    def _checked(self, model: nn.Module, example_inputs: Any, gone: Gone, index_map: IndexMap) -> tuple[Coupling, int]:
        """Return this coupling if a compact model computes what it should, or else another one.

        The second value is the multiply-accumulates of the compact model.
        """
        try:
            found = confirmed(self._wiring, model, example_inputs, gone, index_map)
        except NotRunning as error:
            return self._tried_again(error, gone), 0
        if found.difference is not None:
            return self._without(found.difference, model, example_inputs, gone), found.macs
        return self, found.macs

    def _without(
        self, difference: tuple[TracedCall, str], model: nn.Module, example_inputs: Any, gone: Gone
    ) -> Coupling:
        """Return a coupling that leaves alone what makes an operation of the compact model differ."""
        call, message = difference
        reason = f"{call.key[0] or 'the model'}: {call.key[1]} computes something else in the compact model ({message})"
        lines = cut_lines(self._wiring, call, gone)
        if lines:
            return self._fitted(self._wiring.extended(fixed=[(line, reason) for line in lines]))
        alone = not twins_of(self._wiring, call.key[0])
        for change in suspects(self._wiring, call, gone, alone):
            coupling = self._fitted(applied(self._wiring, change, twins_of(self._wiring, change.module)))
            if coupling._gets_beyond(call, model, example_inputs):
                return coupling
        raise MapError(f"{reason}, although none of its dimensions is pruned")

    def _tried_again(self, error: MapError, gone: Gone) -> Coupling:
        """Return what another trial finds where a compact model does not run, or raise the error if it finds nothing.

        The first trial may have run only because its shares happened to fit. Where another one runs too, what the
        failed operation changes is left alone.
        """
        wiring = fit(self._wiring, self._inputs, first=1)
        if wiring is self._wiring:
            failure = try_out(self._wiring, gone, self._inputs)
            if failure is None:
                raise error
            change = left_alone(self._wiring, failure, gone)
            return self._fitted(applied(self._wiring, change, twins_of(self._wiring, failure.module, failure.call)))
        return Coupling(wiring, self._inputs, self.counts)

    def _fitted(self, wiring: Wiring) -> Coupling:
        return Coupling(fit(wiring, self._inputs), self._inputs, self.counts)

    def _gets_beyond(self, call: TracedCall, model: nn.Module, example_inputs: Any) -> bool:
        """Return whether the check, with about 40 % of every group removed, finds nothing wrong up to a call."""
        gone = trial(self._wiring, seed=0)
        found = compare(self._wiring, model, example_inputs, gone, self._wiring.index_map(gone)).difference
        if found is None:
            return True
        order = list(self._wiring.trace.calls)
        return order.index(found[0].key) > order.index(call.key)


def _followed(model: nn.Module, example_inputs: Any) -> tuple[nn.Module, Any, Trace]:
    """Trace a copy without weights, or with them where it does not run without: (the copy, its inputs, the trace)."""
    # recurrent layers take other steps on the meta device
    if not is_recurrent(model):
        own, inputs = _skeleton(model, "meta"), _to_meta(example_inputs)
        with ShapesOnly():
            run_error(copied(own, {}), inputs)  # fills the caches of code outside of the model, so that all runs agree
        try:
            return own, inputs, _traced(own, inputs)
        except MapError:
            raise
        except Exception:  # a constant outside the state, or a value that is looked at, can't run there
            pass
    own, inputs = _skeleton(model, None), example_inputs
    error = run_error(copied(own, {}), inputs)
    if error is not None:
        raise MapError(f"the model does not run on the example inputs ({error})")
    return own, inputs, _traced(own, inputs)


def _traced(own: nn.Module, inputs: Any) -> Trace:
    """Trace a pass in evaluation mode, and one in training mode where only that uses all parameters and buffers."""
    found = trace(own, inputs)
    idle = [name for name in found.tensors if not found.uses(name)]
    if idle:
        try:
            with torch.random.fork_rng():
                both = trace(own, inputs, (False, True))
        except Exception:  # the model takes other inputs in training mode
            return found
        if any(both.uses(name) for name in idle):
            return both
    return found


def _skeleton(model: nn.Module, device: str | None) -> nn.Module:
    """Return a copy in evaluation mode, without what the model keeps between calls.

    It has no weights on the meta device.
    """
    memo: dict[int, Any] = {**computed(model)}
    if device is not None:
        for _, tensor in tensors_of(model):
            empty = torch.empty_like(tensor, device=device).detach()
            memo[id(tensor)] = like(tensor, empty).requires_grad_(tensor.requires_grad)
    own = copied(model, memo)
    return own.train().eval()  # modules drop cached tensors when they go back to training


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("meta")
    if isinstance(value, Mapping):
        return {key: _to_meta(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_to_meta, value))
    return type(value)(map(_to_meta, value)) if isinstance(value, list | tuple) else value


def _names(model: nn.Module, layers: Iterable[nn.Module | str] | nn.Module | str) -> frozenset[str]:
    """Return the names of the layers and of everything inside them."""
    known = {module: name for name, module in model.named_modules()}
    modules = dict(model.named_modules(remove_duplicate=False))
    found: set[str] = set()
    for layer in (layers,) if isinstance(layers, nn.Module | str) else layers:
        module = modules.get(layer) if isinstance(layer, str) else layer
        name = None if module is None else known.get(module)  # a module with several names has its first one
        if name is None:
            hint = f"; {_nearest(layer, filter(None, modules))}" if isinstance(layer, str) else ""
            raise MapError(f"ignored layer {layer!r} is not in the model{hint}")
        found.update(
            f"{name}.{below}" if below and name else name or below for below, _ in modules[name].named_modules()
        )
    return frozenset(found)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(map(repr, names[:6])) or 'none'}"


def _written(model: nn.Module, tensor: str, lines: Sequence[Array | None]) -> Sequence[Array | None]:
    """Return the lines of a tensor that belong to its layer's outputs, not to its inputs."""
    module = model.get_submodule(tensor.rpartition(".")[0])
    if tensor.endswith("weight") and isinstance(module, PRODUCTS):
        out, _ = weight_dims(module)
        return lines[out : out + 1]
    return lines
