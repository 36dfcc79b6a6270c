"""Which attributes a file may change: sizes that follow from what the map removes, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from hfp.reconstruct.errors import MapError
from hfp.reconstruct.maps.index_map import IndexMap
from hfp.reconstruct.models.attributes import plain, value_of

Shape = tuple[int, ...]

NO_SIZES = frozenset(
    {
        *("stride", "padding", "dilation", "kernel_size", "output_padding", "padding_mode", "transposed"),
        *("eps", "momentum", "affine", "elementwise_affine", "track_running_stats", "p", "inplace", "bias", "mode"),
        *("negative_slope", "approximate", "dim", "start_dim", "end_dim", "ceil_mode", "scale_factor", "requires_grad"),
    }
)
"""Attributes that change what a layer computes and never follow from a shape."""


def check_sizes(skeleton: nn.Module, index_map: IndexMap, *, named_by_file: bool) -> None:
    """Refuse attributes that do not follow from the shapes of the map.

    Those of convolutions, linear layers, norms and embeddings must be what their tensors say. In other modules a whole
    number may only become smaller, as some dimension of the map does; a number of heads or groups must divide what
    such a dimension becomes, and other values may not change. Modules of the reader's own, in a skeleton that the
    reader brings, are taken as they were recorded.

    Raises:
        MapError: naming the attribute and what it must be.
    """
    modules, cuts = dict(skeleton.named_modules(remove_duplicate=False)), frozenset(_cuts(index_map))
    for name, changed in index_map.attributes.items():
        module, shapes = modules[name], _shapes(name, index_map)
        stated = _stated(module, shapes, changed)
        strict = named_by_file or type(module).__module__.startswith("torch.nn.")
        for key, value in changed.items():
            where, old = f"{name or 'model'}.{key}", plain(value_of(module, key))
            if key in NO_SIZES and strict:
                raise MapError(f"{where} is no size that follows from the map; found {value!r}")
            if stated is not None:
                if value not in stated.get(key, ()):
                    raise MapError(f"{where} must follow from the shapes {shapes}; found {value!r}")
            elif not _follows(key, old, value, cuts, strict):
                raise MapError(f"{where} can't become {value!r} from {old!r}: nothing that the map removes says so")


def _stated(module: nn.Module, shapes: Mapping[str, Shape], changed: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values that each attribute of a layer may have; None for modules whose tensors do not say."""
    weight = shapes.get("weight")
    if isinstance(module, _ConvNd) and weight is not None:
        groups = changed.get("groups", module.groups)
        whole = type(groups) is int and 1 <= groups <= module.groups
        inner, outer = (0, 1) if module.transposed else (1, 0)
        fits = whole and weight[0] % groups == 0 and (groups == module.groups or weight != tuple(module.weight.shape))
        return {
            "groups": (groups,) if fits else (),
            "out_channels": (weight[outer] * (groups if module.transposed else 1),) if fits else (),
            "in_channels": (weight[inner] * (1 if module.transposed else groups),) if fits else (),
        }
    if isinstance(module, nn.Linear) and weight is not None:
        return {"in_features": (weight[1],), "out_features": (weight[0],)}
    if isinstance(module, nn.Embedding) and weight is not None:
        return {"num_embeddings": (weight[0],), "embedding_dim": (weight[1],)}
    if isinstance(module, _NormBase) and shapes:
        return {"num_features": tuple(shape[0] for shape in shapes.values() if shape)}
    if isinstance(module, nn.GroupNorm) and weight is not None:
        return {"num_channels": weight, "num_groups": _divisors(weight[0], module.num_groups)}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and weight is not None:
        return {"normalized_shape": (weight,)}
    if isinstance(module, nn.PReLU) and weight is not None:
        return {"num_parameters": weight}
    return None


def _divisors(size: int, most: int) -> tuple[int, ...]:
    return tuple(number for number in range(1, most + 1) if size % number == 0)


def _follows(key: str, old: Any, new: Any, cuts: frozenset[tuple[int, int]], strict: bool) -> bool:
    """Whether an attribute of a module with no row of its own may go from `old` to `new`."""
    if isinstance(old, tuple | list) and isinstance(new, tuple | list) and len(old) == len(new):
        return all(_follows(key, *pair, cuts, strict) for pair in zip(old, new, strict=True))
    if type(old) is int and type(new) is int and strict:
        if not 0 < new < old:
            return new == old
        counts_parts = "head" in key or "group" in key
        return (old, new) in cuts or (counts_parts and any(f % old == 0 and c % new == 0 for f, c in cuts))
    return old == new or not strict


def _cuts(index_map: IndexMap) -> Iterator[tuple[int, int]]:
    for tensor in (*index_map.tensors.values(), *index_map.transient.values()):
        for full, compact in zip(tensor.shape, tensor.compact_shape, strict=True):
            if compact < full:
                yield full, compact


def _shapes(module: str, index_map: IndexMap) -> dict[str, Shape]:
    """The compact shapes of a module's own tensors, by their names inside it."""
    prefix = f"{module}." if module else ""
    return {
        name.removeprefix(prefix): tuple(tensor.compact_shape)
        for name, tensor in index_map.tensors.items()
        if name.startswith(prefix) and "." not in name.removeprefix(prefix) and not name.endswith("batches_tracked")
    }
