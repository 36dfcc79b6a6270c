"""A model of transformers without its weights: the class that its configuration names, and where its tensors are."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hfp.errors import InputError, described, printable
from hfp.language.folder import ModelFolder
from hfp.language.stored import Layout, Weights


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
        return kind.config_class.from_dict(_with_numbers(dict(fields)))
    except Exception as error:
        raise InputError(f"{where}: transformers refuses the configuration: {described(error)}") from error


def _with_numbers(value: Any) -> Any:
    """A copy of what a config.json holds, in which infinities are numbers; transformers writes them as objects."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"} and isinstance(value["__float__"], str):
            return float(value["__float__"])
        return {key: _with_numbers(item) for key, item in value.items()}
    return [_with_numbers(item) for item in value] if isinstance(value, list) else value


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
    """A model without weights, and where its weights are.

    Args:
        model: the model, in evaluation mode. Parameters are on the meta device, and buffers have their values.
        weights: the tensors of its state that are stored.
    """

    model: Any
    weights: Weights


def without_weights(config: Any, kind: Any) -> Any:
    """Make a model whose parameters are on the meta device and whose buffers have their values.

    Raises:
        InputError: the class refuses the configuration, or a buffer can't be made without weights.
    """
    try:
        with torch.random.fork_rng(), _EmptyOnMeta():
            model = kind(copy.deepcopy(config))
    except Exception as error:
        raise InputError(
            f"transformers can't make a {kind.__name__} of this configuration: {described(error)}"
        ) from error
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
    return Outline(model, Layout(model).weights(folder))


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
