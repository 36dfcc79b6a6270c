"""A model of transformers without its weights: the class that its configuration names, and the names of its tensors."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hfp.errors import InputError, listed, printable
from hfp.language.folder import ModelFolder

_LEFT_OUT = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"\.attn\.(masked_)?bias$")
"""Buffers that older versions of transformers stored and newer ones compute."""


def transformers() -> ModuleType:
    """Import transformers.

    Raises:
        InputError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError(f'this needs transformers ({error}): pip install "hfp[transformers]"') from error
    return transformers


def config_of(folder: ModelFolder, changed: Mapping[str, Any] | None = None) -> Any:
    """The configuration of a folder as transformers has it, with some of its fields changed.

    Raises:
        InputError: transformers has no such architecture, or refuses the configuration.
    """
    return config_from({**folder.config, **(changed or {})}, str(folder.path))


def config_from(fields: Mapping[str, Any], where: str) -> Any:
    """A configuration of transformers from the fields of a config.json; code that it names is never loaded.

    Raises:
        InputError: transformers has no such architecture, or refuses the configuration.
    """
    kind = model_class(fields, where)
    try:
        return kind.config_class.from_dict(copy.deepcopy(dict(fields)))
    except Exception as error:
        raise InputError(f"{where}: transformers refuses the configuration: {_line(error)}") from error


def model_class(fields: Mapping[str, Any], where: str) -> Any:
    """The class of transformers that a configuration names.

    Raises:
        InputError: transformers has no such class of models.
    """
    library, name = transformers(), str(fields["architectures"][0])
    kind: Any = getattr(library, name, None) if name.isidentifier() else None
    known = isinstance(kind, type) and issubclass(kind, library.PreTrainedModel)
    if not known or getattr(kind, "config_class", None) is None:
        code = "; code that comes with a model is never run" if "auto_map" in fields else ""
        raise InputError(
            f"{where}: transformers {library.__version__} has no model class {printable(name)!r}{code}; prune the "
            "model in memory with hfp.prune"
        )
    return kind


@dataclass(frozen=True)
class Outline:
    """A model without weights, and the name under which each of its tensors is stored.

    Args:
        model: the model, in evaluation mode. Parameters are on the meta device, and buffers have their values.
        stored: name in the model's state -> name in the folder, for every tensor that is stored.
    """

    model: Any
    stored: Mapping[str, str]


def without_weights(config: Any, kind: Any) -> Any:
    """Make a model whose parameters are on the meta device and whose buffers have their values.

    Raises:
        InputError: the class refuses the configuration, or a buffer can't be made without weights.
    """
    try:
        with torch.random.fork_rng(), _EmptyOnMeta():
            model = kind(copy.deepcopy(config))
    except Exception as error:
        raise InputError(f"transformers can't make a {kind.__name__} of this configuration: {_line(error)}") from error
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                empty = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
                module._parameters[name] = moved.setdefault(id(parameter), empty)
    lost = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if lost:
        raise InputError(f"{kind.__name__}: buffer {lost[0]} can't be made without weights; use hfp.prune in memory")
    return model.eval()


class _EmptyOnMeta(TorchFunctionMode):
    """Makes tensors without values, which weights are before they are drawn, on the meta device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if function is torch.empty:
            given["device"] = "meta"
        return function(*args, **given)


def outline_of(folder: ModelFolder, config: Any = None) -> Outline:
    """The model of a folder without weights.

    Args:
        folder: the folder.
        config: the configuration, where it is not the folder's own.

    Raises:
        InputError: the stored tensors are not those of the model.
    """
    kind = model_class(folder.config, str(folder.path))
    model = without_weights(config_of(folder) if config is None else config, kind)
    return Outline(model, stored_names(model, folder))


def stored_names(model: Any, folder: ModelFolder) -> dict[str, str]:
    """The name in the folder of every tensor of a model's state that is stored there.

    Models without a head store their tensors without the prefix that they have inside a model with one, and the other
    way round. Some tensors are stored under names of earlier versions of transformers.

    Raises:
        InputError: a tensor is missing, has another shape, or is not the model's.
    """
    state = model.state_dict(keep_vars=True)
    prefix = f"{model.base_model_prefix}."
    candidates = [_renamed(model, state, folder)]
    for rule in _rules(prefix):
        candidates.append({name: other for name in state if (other := rule(name)) in folder.tensors})
    named = max(reversed(candidates), key=len)
    known = {id(state[name]) for name in named}
    missing = [name for name, tensor in state.items() if name not in named and id(tensor) not in known]
    patterns = [*_LEFT_OUT, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())]
    taken = set(named.values())
    surplus = [
        name
        for name in folder.tensors
        if name not in taken and not any(re.search(pattern, name) for pattern in patterns)
    ]
    if missing and surplus:
        raise InputError(
            f"{folder.path} stores tensors under other names than its {folder.architecture} has in memory "
            f"({printable(surplus[0])} and {missing[0]}), which is not followed here; load it and call hfp.prune"
        )
    if missing or surplus:
        what = "lacks tensors" if missing else "stores more tensors than those"
        names = listed([printable(name) for name in (missing or surplus)[:8]])
        raise InputError(f"{folder.path} {what} of its {folder.architecture}: {names}")
    for name, other in named.items():
        if folder.tensors[other].shape != tuple(state[name].shape):
            raise InputError(
                f"{folder.path}: {other} has shape {list(folder.tensors[other].shape)}, and config.json says "
                f"{list(state[name].shape)}"
            )
    return named


def _renamed(model: Any, state: Mapping[str, Tensor], folder: ModelFolder) -> dict[str, str]:
    """The names in the folder of tensors that transformers gives another name when it reads them."""
    found = {}
    conversions = import_module("transformers.conversion_mapping").get_model_conversion_mapping(model)
    renamings = [each for each in conversions if type(each).__name__ == "WeightRenaming"]
    for stored in folder.tensors:
        name = stored
        for each in renamings:
            name, _ = each.rename_source_key(name)
        if name in state:
            found[name] = stored
    return found


def _rules(prefix: str) -> tuple[Any, ...]:
    return (lambda name: name, lambda name: name.removeprefix(prefix), lambda name: f"{prefix}{name}")


def stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of blocks, by name: module lists that lie in no other one."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            found[name] = module
    return found


def example_inputs(model: Any, tokens: int, batch: int = 2) -> Sequence[dict[str, Any]]:
    """What a language model may be called with to follow its channels: the plainest, and with a mask that is written
    out.

    Many models look at a mask's numbers to make it, which they can't without weights, unless it is given.
    """
    words = torch.randint(_vocabulary(model), (batch, tokens), generator=torch.Generator().manual_seed(0))
    plain: dict[str, Any] = {"input_ids": words}
    if getattr(model.config, "is_encoder_decoder", False):
        plain["decoder_input_ids"] = words
    if hasattr(model.config, "use_cache"):
        plain["use_cache"] = False
    mask: Tensor = torch.ones(tokens, tokens, dtype=torch.bool)
    return plain, {**plain, "attention_mask": mask.tril()[None, None].expand(batch, 1, tokens, tokens)}


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _line(error: Exception) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
