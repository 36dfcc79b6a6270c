"""Check with the model's own weights that a pruned folder computes what it should, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hfp.language.blocks import KeptBlocks, stack_of
from hfp.language.folder import ModelFolder
from hfp.language.outline import Outline, example_inputs
from hfp.language.streaming import StreamedModel
from hfp.reconstruct import IndexMap
from hfp.reconstruct.models.attributes import apply

TOLERANCE = 1e-3
"""How far two outputs may lie apart, as a share of their norm."""
_TOKENS = 16


def same_outputs(expected: StreamedModel, found: StreamedModel) -> str | None:
    """How the outputs of two models differ on made-up tokens; None where they are the same.

    Raises:
        Exception: one of the models does not run.
    """
    inputs = example_inputs(expected.model, _TOKENS)[0]
    first, second = main_output(expected(**inputs)), main_output(found(**inputs))
    if first.shape != second.shape:
        return f"the outputs have shapes {list(first.shape)} and {list(second.shape)}"
    error, scale = float((first - second).norm()), float(first.norm())
    return None if error <= TOLERANCE * scale else f"its outputs differ by {error:.3g} (their norm is {scale:.3g})"


def main_output(outputs: Any) -> Tensor:
    """The logits that a model returned, or its hidden states where it has no head; float64."""
    found = getattr(outputs, "logits", None)
    return (outputs[0] if found is None else found).double()


def masked_model(
    folder: ModelFolder, full: Outline, stored: Mapping[str, str], blocks: KeptBlocks | None, index_map: IndexMap
) -> StreamedModel:
    """The full model without what was removed: it lacks blocks, and removed entries of its weights are zero.

    Norms take their statistics over the channels that are left.

    Args:
        folder: the full model's folder.
        full: the full model without weights; it is changed.
        stored: name in the model without the removed blocks -> name in the folder.
        blocks: which blocks are kept, where some are not.
        index_map: the map of the others.
    """
    if blocks is not None:
        _, layers = stack_of(full.model)
        path, _, last = blocks.stack.rpartition(".")
        setattr(full.model.get_submodule(path), last, nn.ModuleList(layers[index] for index in blocks.kept))
    narrow = {name: kept for name, module in full.model.named_modules() if (kept := _cut_of(name, module, index_map))}
    for name, kept in narrow.items():
        _over_kept(full.model.get_submodule(name), kept[0], index_map, name)
    names = {other: name for name, other in stored.items()}
    return StreamedModel(Outline(full.model, stored), partial(_masked, folder, names, index_map, set(narrow)))


def _cut_of(name: str, module: nn.Module, index_map: IndexMap) -> tuple[Tensor] | None:
    """The kept channels of a norm that loses some; None for other layers.

    A norm is a layer that has nothing but vectors, which is not a part of a weight.
    """
    own = dict(module.named_parameters(recurse=False))
    if not own or any(parameter.dim() != 1 for parameter in own.values()) or next(module.children(), None) is not None:
        return None
    kept = index_map.tensors[f"{name}.{next(iter(own))}"].kept[0]
    return None if kept is None else (kept,)


def _over_kept(norm: nn.Module, kept: Tensor, index_map: IndexMap, name: str) -> None:
    """Have a norm work on the kept channels and give zeros for the others."""
    apply(norm, {"": dict(index_map.attributes.get(name, {}))})

    def narrow(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][..., kept], *args[1:])

    def widen(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        size = index_map.tensors[f"{name}.{next(iter(norm._parameters))}"].shape[0]
        return output.new_zeros(*output.shape[:-1], size).index_copy_(-1, kept, output)

    norm.register_forward_pre_hook(narrow)
    norm.register_forward_hook(widen)


def _masked(folder: ModelFolder, names: Mapping[str, str], index_map: IndexMap, norms: set[str], stored: str) -> Tensor:
    name = names[stored]
    tensor, value = index_map.tensors[name], folder.read(stored)
    if name.rpartition(".")[0] in norms:
        return tensor.restrict(value)
    return value if tensor.is_identity else torch.where(tensor.mask(), value, torch.zeros((), dtype=value.dtype))
