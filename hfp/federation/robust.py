"""Robust aggregation where every client holds another part of the model.

Some clients may lie. A rule here looks at all updates of a round before the method does and replaces what stands out,
so that every method that averages stays as it is. Coordinate-wise rules (Yin et al., ICML 2018, arXiv 1803.01498)
compare the values of one entry over the clients that hold it. With partial models an entry may have few holders: below
a stated number nobody can tell a lie from a truth, and the entry keeps its global value.

A coordinate-wise rule needs the memory of all submodels of a round, and that of one tensor for all clients.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hfp.errors import InputError
from hfp.federation.robust_rules import Median, NormClip, Rule, TrimmedMean
from hfp.methods import Client, Method, Update
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


def check_robust(rules: Sequence[Rule], method: Method) -> None:
    """Refuse rules about single entries for a method whose clients' tensors don't say which entries they hold.

    Raises:
        InputError: saying so.
    """
    if not method.tells_entries and any(not isinstance(rule, NormClip) for rule in rules):
        raise InputError(
            f"with these options {method.name} has no other robust rule than norm-clip: each client answers with "
            f"single weights of its own, which can't be compared; `hfp methods {method.name}` lists the options"
        )


def defend(
    rules: Sequence[Rule], weights: State, updates: Sequence[Update], trained: Sequence[State] | None = None
) -> Defended:
    """Apply rules to the updates of a round, one rule after the other.

    Args:
        rules: what to do, see `parse_rules`.
        weights: the global state that the tasks were cut from, by name.
        updates: every update of the round; they are not changed.
        trained: for every update, masks of those tensors of which only single entries were trained. The others are not
            compared, and stay as they are.

    Returns:
        The updates for the method's own collector, and the share of the model that could not be defended.
    """
    undefended = 0.0
    for rule in rules:
        if isinstance(rule, NormClip):
            updates = _clipped(rule, updates)
        elif updates:
            updates, undefended = _compared(rule, weights, updates, trained or [{}] * len(updates))
    return Defended(tuple(updates), undefended)


def defended_statistics(
    rules: Sequence[Rule], weights: State, statistics: Sequence[tuple[Client, State]]
) -> list[tuple[Client, State]]:
    """Apply coordinate-wise rules to the clients' batch-norm statistics; every client holds all of them.

    Args:
        rules: what to do; rules about lengths do not apply.
        weights: the current statistics, by name, for entries with too few holders.
        statistics: every client's own.
    """
    for rule in rules:
        if isinstance(rule, NormClip) or not statistics:
            continue
        replaced: list[dict[str, Tensor]] = [{} for _ in statistics]
        for name in statistics[0][1]:
            values = [own[name] for _, own in statistics]
            whole = [TensorMap.identity(tuple(value.shape)) for value in values]
            for own, value in zip(replaced, replacements(rule, whole, values, weights[name])[0], strict=True):
                own[name] = value
        statistics = [(client, own) for (client, _), own in zip(statistics, replaced, strict=True)]
    return list(statistics)


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


def _compared(
    rule: TrimmedMean | Median, weights: State, updates: Sequence[Update], trained: Sequence[State]
) -> tuple[list[Update], float]:
    """Compare every entry over its holders, tensor by tensor."""
    replaced: list[dict[str, Tensor]] = [{} for _ in updates]
    few = entries = 0
    for name in dict.fromkeys(name for update in updates for name in update.reply.tensors):
        members = [number for number, update in enumerate(updates) if _holds(update, name)]
        places = [_place(updates[number], name) for number in members]
        values = [updates[number].reply.tensors[name] for number in members]
        if len({place.shape for place in places}) != 1:
            continue  # of another layout at every client, so no two values speak of the same entry
        if name not in weights and not values[0].is_floating_point():
            continue  # bits by which a client says what it chose
        before = _before(weights, updates[members[0]], name, places[0].shape)
        masks = [trained[number].get(name) for number in members]
        seen = [v if mask is None else v.masked_fill(~mask, torch.nan) for v, mask in zip(values, masks, strict=True)]
        found, holders = replacements(rule, places, seen, before)
        for number, value, mask, tensor in zip(members, values, masks, found, strict=True):
            replaced[number][name] = tensor if mask is None else torch.where(mask, tensor, value)
        if before is not None and before.is_floating_point():
            few += int(((holders > 0) & (holders < rule.fewest_holders)).sum())
            entries += holders.numel()
    made = [_with_tensors(update, tensors) for update, tensors in zip(updates, replaced, strict=True)]
    return made, few / max(entries, 1)


def _holds(update: Update, name: str) -> bool:
    """Whether the client sent values of a tensor; one that trained the first blocks alone sends none of the others."""
    return name in update.reply.tensors and update.reply.tensors[name].numel() > 0


def _place(update: Update, name: str) -> TensorMap:
    known = update.task.index_map.tensors.get(name)
    value = update.reply.tensors[name]
    return known if known is not None and known.compact_shape == tuple(value.shape) else TensorMap.identity(value.shape)


def _before(weights: State, update: Update, name: str, shape: tuple[int, ...]) -> Tensor | None:
    """Return the global value of a tensor: what was sent, where clients under one mask send rows of active weights."""
    for found in (weights, update.task.tensors):
        if name in found and found[name].shape == shape:
            return found[name]
    return None


def replacements(
    rule: TrimmedMean | Median, places: Sequence[TensorMap], values: Sequence[Tensor], before: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """Replace the values of one tensor that stand out from the other holders' values.

    Args:
        rule: which values stay.
        places: for every client where its entries lie in the full tensor.
        values: for every client its entries, of the compact shape; NaN where it did not train one.
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
    centre, first, end = _centre(rule, stacked.gather(0, order).nan_to_num(), holders)
    ranks = order.argsort(0)
    fallback = torch.zeros(shape, dtype=torch.float64) if before is None else before.double()
    made = torch.where((ranks >= first) & (ranks < end), stacked, centre)
    made = torch.where(holders >= rule.fewest_holders, made, fallback.to(made))
    whole = made if kind.is_floating_point else made.round()
    return [place.restrict(row).to(kind) for row, place in zip(whole, places, strict=True)], holders


def _centre(rule: TrimmedMean | Median, ordered: Tensor, holders: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give what replaces a value that goes, and the first and one past the last rank that stays, entry by entry."""
    if isinstance(rule, Median):
        below = ((holders - 1).clamp(min=0) // 2).unsqueeze(0)
        above = (holders // 2).clamp(max=len(ordered) - 1).unsqueeze(0)
        return (ordered.gather(0, below) + ordered.gather(0, above)).squeeze(0) / 2, holders, holders
    first, end = torch.full_like(holders, rule.trim), holders - rule.trim
    ranks = torch.arange(len(ordered), device=ordered.device).view(-1, *[1] * (ordered.dim() - 1))
    stays = (ranks >= first) & (ranks < end)
    return torch.where(stays, ordered, torch.zeros_like(ordered)).sum(0) / (end - first).clamp(min=1), first, end
