"""Networks with early exits: classifiers in the middle, so that a client may train the first blocks alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from hfp.errors import InputError
from hfp.layers.calling import modes_kept
from hfp.models.classifier import classifier_of
from hfp.models.layers import conv_bn, initialise
from hfp.reconstruct import IndexMap, MapError
from hfp.reconstruct.models.copying import copied

MOST_EXITS = 4

_POOLS = tuple(kind for name, kind in vars(nn).items() if "Pool" in name and isinstance(kind, type))


class WithExits(nn.Module):
    """A classifier whose logits are the mean of its early exits' and its own.

    An exit reads the output of one of the network's modules. The first `depth` exits run; where that is not all of
    them, nothing behind the last of them is computed.

    Args:
        network: the classifier, which becomes part of this module.
        places: the names of the modules that exits read, in the order in which they run.
        heads: one head for each place, which makes logits of what the module there returns.

    Attributes:
        needs: of each tensor of the state, the first exit that needs it, counted from 1.
        depth: how many exits run; all of them at first. The last one is the network itself.
    """

    def __init__(self, network: nn.Module, places: Sequence[str], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.network, self.heads = network, nn.ModuleList(heads)
        self.places, self.depth = tuple(places), len(places) + 1
        self.needs: dict[str, int] = {}

    @property
    def exits(self) -> int:
        """The number of exits, the network's own outputs among them."""
        return len(self.places) + 1

    @property
    def runs(self) -> str:
        """How much of the module runs, which its costs depend on."""
        return f"{self.depth} exits"

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to logits `[batch, classes]`, the mean over the exits that run."""
        return torch.stack(self.logits(x)).mean(0)

    def logits(self, x: Tensor) -> list[Tensor]:
        """Map inputs to the logits of every exit that runs, each `[batch, classes]`."""
        found: list[Tensor] = []

        def read(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            found.append(self.heads[len(found)](output))
            if len(found) == self.depth and not torch.compiler.is_exporting():  # which follows modules to their ends
                raise _Enough

        modules = [self.network.get_submodule(place) for place in self.places[: self.depth]]
        hooks = [module.register_forward_hook(read) for module in modules]
        try:
            found.append(self.network(x))
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return found[: self.depth]

    def get_classifier(self) -> tuple[nn.Module, ...]:
        """Return the layers that make the logits: the heads' last ones and the network's own."""
        return (*(classifier_of(head) for head in self.heads), classifier_of(self.network))


class _Enough(Exception):
    """All exits that are asked for have been reached."""


class Head(nn.Sequential):
    """An exit's head: a convolution that halves the map and doubles the channels, their mean, and a linear layer.

    Features without a map, `[batch, tokens, channels]`, are normalised instead of convolved.
    """

    def __init__(self, features: Tensor, classes: int) -> None:
        channels = features.shape[1] if features.dim() == 4 else features.shape[2]
        if features.dim() == 4:
            super().__init__(
                conv_bn(channels, 2 * channels, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                nn.Linear(2 * channels, classes),
            )  # fmt: skip
        else:
            super().__init__(nn.LayerNorm(channels), _MeanToken(), nn.Linear(channels, classes))
        initialise(self)


class _MeanToken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def with_exits(model: nn.Module, example: Tensor) -> WithExits:
    """Put early exits on a classifier.

    An exit stands before each reduction of the map, at most the last three of them. Where the map is never
    reduced, as in vision transformers, exits are evenly spaced. Of timm's networks, the modules that `feature_info`
    names are read; of others, modules in an `nn.Sequential` or `nn.ModuleList`. Heads are drawn from torch's global
    generator.

    Args:
        model: the classifier; it becomes part of what is returned. One that has exits already is returned as it is.
        example: inputs of the size that the model is for.

    Raises:
        InputError: no module of the model returns features that an exit could read.

    >>> import hfp, torch
    >>> from hfp.models.exits import with_exits
    >>> model = with_exits(hfp.create_model("resnet8"), torch.zeros(1, 3, 32, 32))
    >>> model.exits, model.places
    (3, ('blocks.0', 'blocks.1'))
    """
    if isinstance(model, WithExits):
        return model
    with modes_kept(model), torch.no_grad():
        model.eval()
        features = _features(model, example)
        classes = model(example).shape[1]
    places = _chosen(features)
    if not places:
        raise InputError(
            f"{type(model).__name__} can't be given early exits: no module of it that is in a sequence or a list "
            "returns maps [batch, channels, height, width] or tokens [batch, tokens, channels]"
        )
    heads = [Head(features[place], classes).to(features[place]) for place in places]
    made = WithExits(model, places, heads)
    made.needs = _needs(made, example)
    return made


def shortened(model: WithExits, exits: int, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state without values of the tensors that the first exits don't need; single numbers always stay."""
    return {
        name: tensor.reshape(-1)[:0] if model.needs[name] > exits and tensor.dim() else tensor
        for name, tensor in state.items()
    }


def completed(index_map: IndexMap, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the compact state that `shortened` was given, with zeros in place of what it left out."""
    return {
        name: tensor
        if tuple(tensor.shape) == index_map.tensors[name].compact_shape
        else tensor.new_zeros(index_map.tensors[name].compact_shape)
        for name, tensor in state.items()
    }


def only_exits(model: WithExits, exits: int) -> WithExits:
    """Return the model of the first exits alone: it shares the values that these need, and has none of the others."""
    state = model.state_dict(keep_vars=True)
    kept = {id(state[name]): values for name, values in shortened(model, exits, state).items()}
    for tensor in state.values():
        if isinstance(tensor, nn.Parameter) and kept[id(tensor)] is not tensor:
            kept[id(tensor)] = nn.Parameter(kept[id(tensor)].detach(), tensor.requires_grad)
    network = copied(model, kept)
    network.depth = exits
    return network


def only_what_runs(model: nn.Module) -> nn.Module:
    """Return the model without values that only exits need that don't run; others are returned as they are.

    Raises:
        MapError: the model says of a number of exits that it can't have that they run.
    """
    if not isinstance(model, WithExits):
        return model
    depth: Any = model.depth  # from a file
    if type(depth) is not int or not 1 <= depth <= model.exits:
        raise MapError(f"a model of {model.exits} exits runs 1 to {model.exits} of them, and the file has {depth!r}")
    return only_exits(model, depth) if depth < model.exits else model


def with_depth(index_map: IndexMap, exits: int) -> IndexMap:
    """Return the map of a model with exits, of which so many run in the compact model."""
    own = {**index_map.attributes.get("", {}), "depth": exits}
    return dataclasses.replace(index_map, attributes={**index_map.attributes, "": own})


def _features(model: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """Return the outputs that exits could read, by module, in the order in which the modules ran.

    An output that a later module writes into is none of them, because an exit's gradient needs what it read, and
    neither is one of inference mode. Modules that run several times don't say how far the network has come.
    """
    known = [entry["module"] for entry in getattr(model, "feature_info", [])]
    listed = [
        f"{name}.{child}".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and not isinstance(module, ParametrizationList)
        for child, inner in module.named_children()
        if not isinstance(inner, _POOLS)
    ]
    found: dict[str, list[tuple[Any, int | None]]] = {}

    def note(name: str, output: Any) -> None:
        readable = isinstance(output, Tensor) and not output.is_inference()  # those can't be learnt from
        found.setdefault(name, []).append((output, output._version if readable else None))

    @contextmanager
    def watched(names: Sequence[str]) -> Iterator[None]:
        hooks = [
            model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: note(name, out))
            for name in names
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    with watched(known or listed):
        model(example)
    return {
        name: out
        for name, [(out, version), *more] in found.items()
        if version is not None and not more and out.dim() in (3, 4) and out._version == version
    }


def _chosen(features: Mapping[str, Tensor]) -> list[str]:
    """Choose the modules that exits read."""
    sizes = {name: out.shape[2:] if out.dim() == 4 else out.shape[1:2] for name, out in features.items()}
    last_of_size = {size: name for name, size in sizes.items()}
    if len(last_of_size) > 1:
        return list(last_of_size.values())[:-1][-(MOST_EXITS - 1) :]
    names = list(sizes)
    exits = min(MOST_EXITS, len(names))
    return [names[round(number * len(names) / exits) - 1] for number in range(1, exits)]


def _needs(model: WithExits, example: Tensor) -> dict[str, int]:
    """Find the first exit that each tensor of the state is needed for, from where gradients go."""
    parameters = dict(model.named_parameters())
    first: dict[str, int] = {}
    with modes_kept(model), torch.enable_grad():
        model.eval()
        for number, logits in enumerate(model.logits(example), 1):
            wanted = [name for name, parameter in parameters.items() if name not in first and parameter.requires_grad]
            if not wanted:
                break
            reached = torch.autograd.grad(
                logits.sum(), [parameters[name] for name in wanted], retain_graph=True, allow_unused=True
            )
            first |= {name: number for name, gradient in zip(wanted, reached, strict=True) if gradient is not None}
    known = {id(parameters[name]): number for name, number in first.items()}  # some have further names
    every = model.named_parameters(remove_duplicate=False)
    first |= {name: known[id(parameter)] for name, parameter in every if id(parameter) in known}
    return {name: first.get(name) or _with_siblings(name, first) for name in model.state_dict()}


def _with_siblings(name: str, first: Mapping[str, int]) -> int:
    """A buffer is needed with the parameters of its module; what belongs to none is needed from the first exit on."""
    module = name.rpartition(".")[0]
    return min((number for other, number in first.items() if other.rpartition(".")[0] == module), default=1)
