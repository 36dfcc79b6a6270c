"""Robust aggregation where every client holds another part of the model.

Some clients may lie. A rule here looks at all updates of a round before the method does and replaces what stands out,
so that every method that averages stays as it is. Coordinate-wise rules (Yin et al., ICML 2018, arXiv 1803.01498) compare
the values of one entry over the clients that hold it. With partial models an entry may have few holders: below a stated
number nobody can tell a lie from a truth, and the entry keeps its global value.

A coordinate-wise rule needs the memory of all submodels of a round, and that of one tensor for all clients.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hfp.errors import InputError, unknown
from hfp.methods import Update
from hfp.reconstruct import TensorMap

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Defended:
    """The updates after a robust rule.

    Args:
        updates: the same updates, with tensors in which nothing stands out.
        undefended: share of the model's entries that some client holds but too few to be defended; these keep their
            global value.
    """

    updates: tuple[Update, ...]
    undefended: float


@dataclass(frozen=True)
class TrimmedMean:
    """Take the `trim` smallest and the `trim` largest values of every entry out of its mean.

    What is taken out is replaced by the mean of the rest, so that a plain mean of the replaced values is the trimmed
    mean. An entry with fewer than ``2 * trim + 1`` holders keeps its global value.
    """

    trim: int

    def __post_init__(self) -> None:
        """Check the number."""
        if self.trim < 1:
            raise InputError(f"trimmed-mean must take out at least 1 value on each side; found {self.trim}")

    @property
    def fewest_holders(self) -> int:
        """How many clients must hold an entry."""
        return 2 * self.trim + 1

    def centre(self, ordered: Tensor, holders: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give the mean of the values that stay `[...]`, and the first and one past the last rank that stays."""
        first, end = torch.full_like(holders, self.trim), holders - self.trim
        ranks = torch.arange(len(ordered), device=ordered.device).view(-1, *[1] * (ordered.dim() - 1))
        stays = (ranks >= first) & (ranks < end)
        total = torch.where(stays, ordered, torch.zeros_like(ordered)).sum(0)
        return total / (end - first).clamp(min=1), first, end


@dataclass(frozen=True)
class Median:
    """Replace every value of an entry by the median over its holders; with fewer than three it keeps its global value."""

    fewest_holders: int = 3

    def centre(self, ordered: Tensor, holders: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give the median `[...]`, and an empty range of ranks that stay."""
        below = ((holders - 1).clamp(min=0) // 2).unsqueeze(0)
        above = (holders.clamp(min=1) // 2).unsqueeze(0)
        middle = (ordered.gather(0, below) + ordered.gather(0, above)).squeeze(0) / 2
        return middle, holders, holders


@dataclass(frozen=True)
class NormClip:
    """Shorten every change that is longer than `times` the median of all changes of the round.

    Submodels have different sizes, so a length is the root mean square over the entries that a client holds.
    """

    times: float = 1.0

    def __post_init__(self) -> None:
        """Check the number."""
        if not self.times > 0:
            raise InputError(f"norm-clip must be above 0 times the median; found {self.times}")


Rule = TrimmedMean | Median | NormClip
RULES: Mapping[str, Callable[..., Rule]] = {"trimmed-mean": TrimmedMean, "median": Median, "norm-clip": NormClip}


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Read rules such as ``"trimmed-mean:2"`` or ``"norm-clip,median"``, applied in this order.

    Args:
        text: names with commas between them. ``trimmed-mean:N`` takes out the N smallest and largest values,
            ``norm-clip:C`` shortens changes to C times the median (1 if not given), ``median`` has no number.

    Raises:
        InputError: a name is not known, or a number is missing or out of its range.

    >>> parse_rules("norm-clip,trimmed-mean:2")
    (NormClip(times=1.0), TrimmedMean(trim=2))
    """
    return tuple(_parsed(part.strip()) for part in text.split(","))


def _parsed(text: str) -> Rule:
    name, _, number = text.partition(":")
    if name not in RULES:
        raise unknown("robust rule", name, RULES)
    if name == "median" and number:
        raise InputError(f"the robust rule median takes no number; found {text!r}")
    if name == "trimmed-mean" and not number:
        raise InputError("trimmed-mean needs a number, for instance trimmed-mean:2")
    if not number:
        return RULES[name]()
    kind = int if name == "trimmed-mean" else float
    try:
        value = kind(number)
    except ValueError:
        raise InputError(f"the number of robust rule {name} must be a number; found {number!r}") from None
    return RULES[name](value)


def defend(rules: Sequence[Rule], weights: State, updates: Sequence[Update]) -> Defended:
    """Apply rules to the updates of a round, one rule after the other.

    Args:
        rules: what to do, see `parse_rules`.
        weights: the global state that the tasks were cut from, by name.
        updates: every update of the round; they are not changed.

    Returns:
        The updates for the method's own collector, and the share of the model that could not be defended.
    """
    undefended = 0.0
    for rule in rules:
        if isinstance(rule, NormClip):
            updates = _clipped(rule, updates)
        elif updates:
            updates, undefended = _compared(rule, weights, updates)
    return Defended(tuple(updates), undefended)


def _clipped(rule: NormClip, updates: Sequence[Update]) -> list[Update]:
    """Shorten the changes that are too long."""
    lengths = [_length(update) for update in updates]
    limit = rule.times * statistics.median(lengths) if lengths else 0.0
    return [
        update if length <= limit else _shortened(update, limit / length)
        for update, length in zip(updates, lengths, strict=True)
    ]


def _changes(update: Update) -> dict[str, tuple[Tensor, Tensor]]:
    """Pair what was sent and what came back, for tensors that can be compared."""
    sent, back = update.task.tensors, update.reply.tensors
    return {
        name: (sent[name], tensor)
        for name, tensor in back.items()
        if name in sent and tensor.is_floating_point() and tensor.shape == sent[name].shape
    }


def _length(update: Update) -> float:
    """Measure the root mean square of an update's change."""
    pairs = _changes(update).values()
    total = sum(float((after.double() - before.double()).square().sum()) for before, after in pairs)
    return (total / max(sum(after.numel() for _, after in pairs), 1)) ** 0.5


def _shortened(update: Update, share: float) -> Update:
    moved = {name: before + share * (after - before) for name, (before, after) in _changes(update).items()}
    return _with_tensors(update, moved)


def _with_tensors(update: Update, tensors: State) -> Update:
    reply = dataclasses.replace(update.reply, tensors={**update.reply.tensors, **tensors})
    return dataclasses.replace(update, reply=reply)


def _compared(rule: TrimmedMean | Median, weights: State, updates: Sequence[Update]) -> tuple[list[Update], float]:
    """Compare every entry over its holders, tensor by tensor."""
    replaced: list[dict[str, Tensor]] = [{} for _ in updates]
    few = entries = 0
    for name in dict.fromkeys(name for update in updates for name in update.reply.tensors):
        members = [number for number, update in enumerate(updates) if name in update.reply.tensors]
        places = [_place(updates[number], name) for number in members]
        values = [updates[number].reply.tensors[name] for number in members]
        if len({place.shape for place in places}) > 1:
            continue  # of another layout at every client, so no two values speak of the same entry
        before = weights[name] if name in weights and weights[name].shape == places[0].shape else None
        found, holders = replacements(rule, places, values, before)
        for number, tensor in zip(members, found, strict=True):
            replaced[number][name] = tensor
        if before is not None and before.is_floating_point():
            few += int(((holders > 0) & (holders < rule.fewest_holders)).sum())
            entries += holders.numel()
    made = [_with_tensors(update, tensors) for update, tensors in zip(updates, replaced, strict=True)]
    return made, few / max(entries, 1)


def _place(update: Update, name: str) -> TensorMap:
    known = update.task.index_map.tensors.get(name)
    value = update.reply.tensors[name]
    return known if known is not None and known.compact_shape == tuple(value.shape) else TensorMap.identity(value.shape)


def replacements(
    rule: TrimmedMean | Median, places: Sequence[TensorMap], values: Sequence[Tensor], before: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """Replace the values of one tensor that stand out from the other holders' values.

    Args:
        rule: which values stay.
        places: for every client where its entries lie in the full tensor.
        values: for every client its entries, of the compact shape.
        before: the full tensor that entries with too few holders fall back to; zeros if None.

    Returns:
        For every client its entries after the rule, and how many clients hold each entry, of the full shape.
    """
    shape, kind = places[0].shape, values[0].dtype
    stacked = torch.full((len(values), *shape), torch.nan, dtype=torch.float64, device=values[0].device)
    for row, place, value in zip(stacked, places, values, strict=True):
        place.write(value.double(), row)
    holders = (~stacked.isnan()).sum(0)
    order = stacked.argsort(dim=0, stable=True)  # an entry that is not held sorts last
    centre, first, end = rule.centre(stacked.gather(0, order).nan_to_num(), holders)
    ranks = order.argsort(0)
    fallback = torch.zeros(shape, dtype=torch.float64) if before is None else before.double()
    made = torch.where((ranks >= first) & (ranks < end), stacked, centre)
    made = torch.where(holders >= rule.fewest_holders, made, fallback.to(made))
    whole = made if kind.is_floating_point else made.round()
    return [place.restrict(row).to(kind) for row, place in zip(whole, places, strict=True)], holders
