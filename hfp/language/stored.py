"""The tensors of a model as its folder stores them: under other names, or several of them as one.

transformers renames tensors when it reads a folder, and merges or splits some of them: it stores every expert of a
mixture by itself, and has all experts of a layer as one tensor in memory. The same rules, turned round, write a folder.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

from torch import Tensor

from hfp.errors import InputError, listed, message_of, printable
from hfp.language.folder import ModelFolder

_LEFT_OUT = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"\.attn\.(masked_)?bias$")
"""Buffers that older versions of transformers stored and newer ones compute."""


@dataclass(frozen=True)
class Weights:
    """The stored tensors of a model, by their names in the model.

    Args:
        units: the names, in the order in which they are stored; those of a unit are made of the same stored tensors.
        like: name -> an empty tensor of the stored shape and dtype, on the meta device.
        load: the first name of a unit -> the values of the unit's tensors.
    """

    units: tuple[tuple[str, ...], ...]
    like: Mapping[str, Tensor]
    load: Callable[[str], Mapping[str, Tensor]]

    @cached_property
    def _first(self) -> dict[str, str]:
        return {name: unit[0] for unit in self.units for name in unit}

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        return self.load(self._first[name])[name]

    def bytes(self, name: str, shape: Sequence[int]) -> int:
        """How many bytes a part of this shape of a tensor takes in a folder."""
        return self.like[name].new_empty(tuple(shape)).nbytes

    def renamed(self, names: Mapping[str, str]) -> Weights:
        """Some of the tensors under other names.

        Args:
            names: the new name -> the name here.
        """
        new = {old: name for name, old in names.items()}
        units = tuple(tuple(new[name] for name in unit) for unit in self.units if unit[0] in new)

        def load(first: str) -> dict[str, Tensor]:
            return {new[name]: tensor for name, tensor in self.load(names[first]).items()}

        return Weights(units, {name: self.like[old] for name, old in names.items()}, load)


@dataclass(frozen=True)
class _Part:
    """Stored tensors that transformers makes tensors of a model of.

    Args:
        target: the first name of the result in the model.
        stored: the name of each stored tensor -> the pattern of the converter that it goes by.
        converter: merges or splits them; None where one tensor only has another name.
    """

    target: str
    stored: dict[str, str]
    converter: Any


class Layout:
    """How transformers stores the tensors of a model.

    Args:
        model: the model, with or without weights.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._state = model.state_dict(keep_vars=True)
        rules = import_module("transformers.conversion_mapping").get_model_conversion_mapping(model)
        self._loading = import_module("transformers.core_model_loading")
        self._renamings = [rule for rule in rules if isinstance(rule, self._loading.WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, self._loading.WeightConverter)]

    def weights(self, folder: ModelFolder) -> Weights:
        """The model's tensors in a folder.

        Raises:
            InputError: a tensor is missing, has another shape, or is not the model's.
        """
        parts, unknown = self._parts(folder.tensors)
        order = {name: place for place, name in enumerate(folder.tensors)}
        parts.sort(key=lambda part: min(order[name] for name in part.stored))
        units = [(part, self._empty(part, folder)) for part in parts]
        like = {name: tensor for _, tensors in units for name, tensor in tensors.items()}
        self._check(folder, like, unknown)
        of = {next(iter(tensors)): part for part, tensors in units}

        def load(first: str) -> dict[str, Tensor]:
            return self._loaded(of[first], {name: folder.read(name) for name in of[first].stored})

        return Weights(tuple(tuple(tensors) for _, tensors in units), like, load)

    def stored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The form in which `save_pretrained` stores tensors of this model.

        Where transformers would not read the same tensors back, such as unequal parts that it would split equally, they
        keep their names and forms in memory, which it reads too.

        Args:
            tensors: name in the model -> values, of all tensors of a unit.
        """
        if "_weight_conversions" not in vars(self._model):
            rules = import_module("transformers.conversion_mapping").get_model_conversion_mapping(
                self._model, add_legacy=False
            )
            self._model._weight_conversions = [
                rule for rule in rules if not isinstance(rule, self._loading.PrefixChange)
            ]
        found: dict[str, Tensor] = self._loading.revert_weight_conversion(self._model, dict(tensors))
        parts, unknown = self._parts(found)
        again: dict[str, Tensor] = {}
        for part in parts:
            again |= self._loaded(part, {name: found[name] for name in part.stored})
        same = again.keys() == tensors.keys() and all(
            tensor.shape == again[name].shape and tensor.equal(again[name]) for name, tensor in tensors.items()
        )
        return found if same and not unknown else dict(tensors)

    def _parts(self, names: Iterable[str]) -> tuple[list[_Part], list[str]]:
        """Which stored tensors make which of the model's, and those that make none."""
        patterns = {pattern: rule for rule in self._converters for pattern in rule.source_patterns}
        found: dict[str, _Part] = {}
        unknown: list[str] = []
        for stored in sorted(names, key=self._loading.dot_natural_key):
            name, pattern = self._renamed(stored, self._renamings, self._converters)
            if name not in self._state and stored in self._state:
                name, pattern = stored, None
            if name not in self._state:
                unknown.append(stored)
            elif pattern is None:
                found[name] = _Part(name, {stored: ""}, None)
            else:
                found.setdefault(name, _Part(name, {}, patterns[pattern])).stored[stored] = pattern
        return list(found.values()), unknown

    def _renamed(self, stored: str, renamings: Sequence[Any], converters: Sequence[Any]) -> tuple[str, str | None]:
        """The name in the model of a stored tensor, and the pattern of the converter that it goes by."""
        found = self._loading.rename_source_key(
            stored, renamings, converters, self._model.base_model_prefix, self._state
        )
        return found[0], found[1]

    def _loaded(self, part: _Part, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What transformers makes of stored tensors."""
        if part.converter is None:
            return {part.target: next(iter(tensors.values()))}
        converter = copy.deepcopy(part.converter)
        for name, tensor in tensors.items():
            converter.add_tensor(part.target, name, part.stored[name], tensor)
        found = converter.convert(part.target, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}

    def _empty(self, part: _Part, folder: ModelFolder) -> dict[str, Tensor]:
        """Empty tensors of the shapes that stored ones will have in the model."""
        try:
            return self._loaded(part, {name: folder.tensors[name].empty() for name in part.stored})
        except Exception as error:
            raise InputError(
                f"{folder.path}: transformers can't make {part.target} of {printable(next(iter(part.stored)))} and "
                f"{len(part.stored) - 1} more tensors: {message_of(error)}"
            ) from error

    def _check(self, folder: ModelFolder, like: Mapping[str, Tensor], unknown: Collection[str]) -> None:
        known = {id(self._state[name]) for name in like if name in self._state}
        missing = [name for name, tensor in self._state.items() if name not in like and id(tensor) not in known]
        patterns = [*_LEFT_OUT, *(getattr(self._model, "_keys_to_ignore_on_load_unexpected", None) or ())]
        surplus = [name for name in unknown if not any(re.search(pattern, name) for pattern in patterns)]
        if missing and surplus:
            raise InputError(
                f"{folder.path} stores tensors under other names than its {folder.architecture} has in memory "
                f"({printable(surplus[0])} and {missing[0]}), which is not followed here; load it and call hfp.prune"
            )
        if missing or surplus:
            what = "lacks tensors" if missing else "stores more tensors than those"
            names = listed([printable(name) for name in (missing or surplus)[:8]])
            raise InputError(f"{folder.path} {what} of its {folder.architecture}: {names}")
        for name, tensor in like.items():
            if tensor.shape != self._state[name].shape:
                raise InputError(
                    f"{folder.path}: {name} has shape {list(tensor.shape)}, and config.json says "
                    f"{list(self._state[name].shape)}"
                )
