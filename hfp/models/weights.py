"""Reads weights from safetensors files, or from a state_dict that `torch.save` wrote. Nothing else is unpickled."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hfp.errors import InputError, file_errors, first_line
from hfp.models.classifier import classifier_of
from hfp.reconstruct.files.parts import VECTOR

_PICKLES = frozenset({".pth", ".pt", ".bin", ".ckpt", ".tar"})
_INSIDE = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.", "module.")  # what DataParallel and torch.compile put before names, in any order
_NAMED = 3  # names that a message lists


def load_weights(model: nn.Module, path: str | os.PathLike[str], *, new_classifier: bool = False) -> str:
    """Put the weights of a file into `model`.

    Args:
        model: the model, which is changed only if all tensors fit.
        path: a file as for `read_weights`.
        new_classifier: keep the model's own classifier where the file's has another number of classes, as with timm's
            pretrained weights. By default such a file is refused.

    Returns:
        A phrase that says where the weights are from, and whether the classifier is new.

    Raises:
        InputError: the file can't be read, or is of another model; the message has the first names that differ.
    """
    path = Path(path)
    own = model.state_dict()
    state = _unwrapped(read_weights(path), own)
    head = _head_of_other_classes(model, state, own) if new_classifier else set()
    state = {name: tensor for name, tensor in state.items() if name not in head}
    if any(name.startswith(VECTOR) for name in state):
        raise InputError(
            f"{path} holds a pruned model, and full weights are wanted; read it with hfp.load_pruned, and put it back "
            "into the full model with its index_map.embed"
        )
    lacking = [name for name in own if name not in state and name not in head]
    surplus = [name for name in state if name not in own]
    if lacking or surplus:
        parts = [f"it lacks {_first(lacking)}"] * bool(lacking) + [f"it also holds {_first(surplus)}"] * bool(surplus)
        raise InputError(f"{path} is not the state of this {type(model).__name__}: {' and '.join(parts)}")
    reshaped = [
        f"{name} has shape {list(state[name].shape)}, not {list(own[name].shape)}"
        for name in state
        if state[name].shape != own[name].shape
    ]
    if reshaped:
        raise InputError(f"{path} is not the state of this {type(model).__name__}: {_first(reshaped, '; ')}")
    model.load_state_dict(state, strict=False)
    return f"the weights in {path}{f'; {_first(sorted(head))} new, for another number of classes' if head else ''}"


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the state in a file, by name.

    Args:
        path: a safetensors file, or one of `torch.save` with a state_dict, alone or under ``state_dict``,
            ``model_state_dict`` or ``model``. One from before PyTorch 1.6 must end in ``.pth``, ``.pt``, ``.bin``,
            ``.ckpt`` or ``.tar``.

    Raises:
        InputError: there is no such file, the file is damaged, or it pickles other things than tensors.
    """
    path = Path(path)
    with file_errors(f"the weights {path} can't be read"):
        if not path.is_file():
            raise InputError(f"no weights in {path}: there is no such file")
        pickled = _is_pickle(path)
    found: Any = _unpickled(path) if pickled else _safetensors(path)
    for key in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    entries = found.items() if isinstance(found, Mapping) else ()
    if not entries or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in entries):
        raise InputError(
            f"{path} holds no state_dict, alone or under {', '.join(_INSIDE)}; save one with "
            "torch.save(model.state_dict(), FILE)"
        )
    return dict(found)


def _unwrapped(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what a wrapper put before every name, unless the model has the same before its own names."""
    for wrapper in _WRAPPERS:
        before = [all(name.startswith(wrapper) for name in names) for names in (state, own)]
        if before == [True, False]:
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    return state


def _is_pickle(path: Path) -> bool:
    if path.suffix.lower() in _PICKLES:
        return True
    with path.open("rb") as file:
        return zipfile.is_zipfile(file)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} is no safetensors file, nor one of torch.save, which ends in {', '.join(sorted(_PICKLES))} or is "
            f"an archive, as since PyTorch 1.6: {error}"
        ) from error


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.load's own, about how the file was written
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _begins_as_saved(path):
            raise InputError(f"{path} is damaged or was not written by torch.save") from error
        raise InputError(
            f"{path} is a pickle of other things than tensors, which could run any code, so it is not read; "
            f"{_convert(f'torch.load({str(path)!r}, weights_only=False)')}"
        ) from error
    except RuntimeError as error:
        if "TorchScript" in str(error):
            found = f"{path} is an archive of TorchScript, which holds code, so it is not read"
            raise InputError(f"{found}; {_convert(f'torch.jit.load({str(path)!r})')}") from error
        raise InputError(f"{path} can't be read as a state_dict: {first_line(error)}") from error
    except Exception as error:  # damage makes the reader fail in any way
        raise InputError(f"{path} is damaged or was not written by torch.save") from error


def _begins_as_saved(path: Path) -> bool:
    """Tell whether a file begins as what `torch.save` writes, and not as a page about a failed download does."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _convert(load: str) -> str:
    """Say how to turn what is loaded, be it a model or a checkpoint with a model or state inside, into a state."""
    inside = f"next((m[k] for k in {_INSIDE} if k in m), m) if isinstance(m, dict) else m"
    return (
        f'if you trust it, convert it: python -c "import torch; m = {load}; m = {inside}; '
        "torch.save(getattr(m, 'state_dict', lambda: m)(), 'weights.pth')\""
    )


def _head_of_other_classes(model: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the classifier's tensors if nothing but their number of classes differs, else no name."""
    try:
        ids = {id(parameter) for parameter in classifier_of(model).parameters()}
    except InputError:
        return set()
    names = {name for name, parameter in model.named_parameters() if id(parameter) in ids}
    pairs = [(state.get(name), own[name]) for name in names]
    fit = all(there is not None and there.shape[1:] == here.shape[1:] for there, here in pairs)
    differ = any(there is not None and there.shape != here.shape for there, here in pairs)
    return names if fit and differ else set()


def _first(words: list[str], between: str = ", ") -> str:
    more = len(words) - _NAMED
    return between.join(words[:_NAMED]) + (f" and {more} more" if more > 0 else "")
