"""What a pruning did to every layer, as plain values and as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn
from torch.nn.utils import parametrize

from hfp.layers.products import PRODUCTS, counts_of, weight_dims
from hfp.pruning.repair.report import RepairReport, repair_lines
from hfp.reconstruct import IndexMap


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    kind: its class. before, after: its output channels (of a norm or another layer: its channels). inputs: read
        channels before
    and after. parameters: before and after. reason: why it keeps all its outputs; None if it lost some.
    """

    name: str
    kind: str
    before: int
    after: int
    inputs: tuple[int, int] | None
    parameters: tuple[int, int]
    reason: str | None


@dataclass(frozen=True)
class PruneReport:
    """What was asked for and what came out.

    costs: "macs" (of one forward pass of the example inputs), "params", "bytes" and, where it was measured, "latency"
        (seconds),
    each before and after. ratio: the share of all channels of the coupled groups that is gone. unknown: operations that
    are not followed. repairs: what the last step's repairs did.
    """

    budget: str
    criterion: str
    ratio: float
    costs: Mapping[str, tuple[float, float]]
    layers: tuple[LayerReport, ...]
    unknown: tuple[str, ...] = ()
    repairs: tuple[RepairReport, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def shown(self) -> Group:
        """A table of all layers and the total, why layers were left alone, and what repairs did."""
        return Group(shown(self.layers, self.costs), *(Text(line) for line in repair_lines(self.repairs)))


def shown(layers: Sequence[LayerReport], costs: Mapping[str, tuple[float, float]]) -> Group:
    """A table of layers and total costs, and one line for each reason to leave layers alone."""
    return Group(layer_table(layers, costs), *(Text(line) for line in reason_lines(layers)))


def layer_table(layers: Sequence[LayerReport], costs: Mapping[str, tuple[float, float]]) -> Table:
    """One row a layer, and one for each cost of the whole model."""
    table = Table()
    table.add_column("layer", overflow="fold")
    for column in ("inputs", "channels", "parameters"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in layers:
        inputs = _pair(*layer.inputs) if layer.inputs else ""
        table.add_row(layer.name, inputs, _pair(layer.before, layer.after), _pair(*layer.parameters))
    table.add_section()
    for name, (before, after) in costs.items():
        pair = _milliseconds(before, after) if name == "latency" else _pair(before, after)
        table.add_row(f"total {name}", "", f"{after / before:.1%}" if before else "", pair)
    return table


def reason_lines(layers: Sequence[LayerReport]) -> list[str]:
    """For every reason, the layers that were left alone because of it."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        if layer.reason is not None:
            found.setdefault(layer.reason, []).append(layer.name)
    return [
        f"left alone: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}: {reason}"
        for reason, names in found.items()
    ]


def _milliseconds(before: float, after: float) -> str:
    return f"{before * 1e3:.3g} ms → {after * 1e3:.3g} ms"


def _pair(before: float, after: float) -> str:
    text = "{:,}" if isinstance(before, int) else "{:.4g}"
    return text.format(before) if before == after else f"{text.format(before)} → {text.format(after)}"


def layer_reports(
    model: nn.Module, index_map: IndexMap, reason: Callable[[str, int], str | None] | None = None
) -> tuple[LayerReport, ...]:
    """Every layer of a full model that has parameters, with what a map keeps of it.

    Args:
        model: the full model.
        index_map: what is kept.
        reason: (tensor, dimension) -> why nothing of it can be removed.
    """
    return tuple(_layer_reports(model, index_map, reason))


def _layer_reports(
    model: nn.Module, index_map: IndexMap, reason: Callable[[str, int], str | None] | None
) -> Iterator[LayerReport]:
    for name, module in model.named_modules():
        own = {} if _is_parametrization(name) else _own_parameters(module)
        if not own:
            continue
        maps = {key: index_map.tensors[f"{name}.{key}" if name else key] for key in own}
        sizes = (sum(p.numel() for p in own.values()), sum(_entries(m.compact_shape) for m in maps.values()))
        key = "weight" if "weight" in own else max(own, key=lambda each: own[each].numel())
        changed = index_map.attributes.get(name, {})
        out = _out_dim(module, own[key].dim())
        read, written = _size_attributes(module)
        single = own[key].dim() == 0  # a number, such as a learnt temperature
        before, after = (1, 1) if single else (maps[key].shape[out], maps[key].compact_shape[out])
        if written is not None:
            before = getattr(module, written)
            after = changed.get(written, before)
        inputs = None if read is None else (getattr(module, read), changed.get(read, getattr(module, read)))
        why = None
        if before == after:
            why = reason(f"{name}.{key}" if name else key, out) if reason and not single else None
            why = "it is a single number" if single else why
            why = why or ("the budget is met without it" if reason else None)
        yield LayerReport(name or "(model)", type(module).__name__, before, after, inputs, sizes, why)


def tensor_reports(index_map: IndexMap) -> tuple[LayerReport, ...]:
    """Every tensor of a map with two dimensions or more, where nothing but the map is known."""
    return tuple(
        LayerReport(
            name,
            "tensor",
            tensor.shape[0],
            tensor.compact_shape[0],
            (tensor.shape[1], tensor.compact_shape[1]),
            (_entries(tensor.shape), _entries(tensor.compact_shape)),
            None,
        )
        for name, tensor in index_map.tensors.items()
        if len(tensor.shape) > 1
    )


def _is_parametrization(name: str) -> bool:
    """Whether a module only holds what another one's weight is computed from."""
    return "parametrizations" in name.split(".")


def _own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """A layer's parameters by their names inside it, those that its weight is computed from included."""
    own = dict(module.named_parameters(recurse=False))
    computed = getattr(module, "parametrizations", None)
    if isinstance(computed, nn.Module) and parametrize.is_parametrized(module):
        own |= {f"parametrizations.{key}": value for key, value in computed.named_parameters()}
    return own


def _out_dim(module: nn.Module, rank: int) -> int:
    """The dimension of a layer's weight that counts its outputs."""
    return weight_dims(module)[0] if isinstance(module, PRODUCTS) else max(rank - 1, 0)


def _size_attributes(module: nn.Module) -> tuple[str | None, str] | tuple[None, None]:
    """The attributes that count the inputs and outputs of a layer whose outputs are not its inputs."""
    counts = counts_of(module) if isinstance(module, (*PRODUCTS, nn.RNNBase, nn.RNNCellBase)) else None
    return counts or (None, None)


def _entries(shape: tuple[int, ...]) -> int:
    entries = 1
    for size in shape:
        entries *= size
    return entries
