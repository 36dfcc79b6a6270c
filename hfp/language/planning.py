"""Which blocks and channels of a folder's model go, found without its weights in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from hfp import importance as criteria
from hfp.errors import InputError, message_of
from hfp.language.blocks import BlockInfluence, KeptBlocks, least_influential, shallower, stack_of
from hfp.language.configuration import fields_of, sizes_that_can_be_said
from hfp.language.folder import ModelFolder
from hfp.language.outline import Outline, config_of, example_inputs, model_class, outline_of, without_weights
from hfp.language.perplexity import Perplexity, perplexity_of
from hfp.language.perplexity import Text as Tokens
from hfp.language.streaming import StreamedCriterion, StreamedModel
from hfp.language.widths import Width, chosen_bundles, kept_widths, kinds_of, nothing_goes, too_coarse, why_whole
from hfp.pruning.budget import Budget
from hfp.pruning.meeting import meet
from hfp.pruning.progress import Tell
from hfp.pruning.schedule import Bundle, Kept, Order, RankingRules
from hfp.pruning.scoring import scored
from hfp.reconstruct import Coupling, IndexMap, MapError

TOKENS = 16
"""Multiply-accumulates are counted for a sequence of so many tokens."""
_SEQUENCES = 2
_ENTRY_BYTES, _COPIES = 4, 3


@dataclass(frozen=True)
class WidthRules:
    """What may become narrower, and in which order.

    Args:
        widths: some of `hfp.language.choices.WIDTHS`.
        criterion: group -> one score per channel, by weights alone; or a criterion's name.
        uniform: whether all blocks keep as many channels of a kind.
        rules: the ranking and what limits it.
    """

    widths: tuple[str, ...]
    criterion: str | Callable[[Any], Any]
    uniform: bool
    rules: RankingRules


@dataclass(frozen=True)
class TextRun:
    """What the full model did with a text.

    perplexity: its perplexity. influence: how much each block changes what it is given, where that was asked for.
    """

    perplexity: Perplexity
    influence: tuple[float, ...] = ()


@dataclass(frozen=True)
class FolderPlan:
    """What goes of a folder's model, and what is left.

    Args:
        blocks: which blocks are kept; None where all are.
        changed: the fields of the configuration that differ without the removed blocks.
        shallow: the model without the removed blocks, and without weights.
        coupling: the channels of that model that go together.
        widths: what became of the widths that may become narrower.
        index_map: the map of the kept channels.
        costs: "macs" (per token) and "params": before and after.
        unscored: groups that the criterion has no score for, with the reason; they keep everything.
        whole: a width that was asked for and that nothing can be removed of -> the reason.
    """

    blocks: KeptBlocks | None
    changed: Mapping[str, Any]
    shallow: Outline
    coupling: Coupling
    widths: tuple[Width, ...]
    index_map: IndexMap
    costs: Mapping[str, tuple[float, float]]
    unscored: Mapping[str, str]
    whole: Mapping[str, str]


def read_by_full_model(folder: ModelFolder, text: Tokens, influence: bool, tell: Tell) -> TextRun:
    """Run the full model over a text, for its perplexity and what its blocks do.

    Raises:
        InputError: it does not predict the next token, or has no single list of blocks.
    """
    streamed = StreamedModel(outline_of(folder))
    watch = BlockInfluence(list(stack_of(streamed.model)[1])) if influence else None
    found = perplexity_of(streamed, text, lambda words: tell(f"full model: {words}"))
    return TextRun(found, () if watch is None else tuple(watch.scores))


def chosen_blocks(folder: ModelFolder, drop: int | Sequence[int], reading: TextRun | None) -> KeptBlocks | None:
    """Which blocks are kept.

    Args:
        folder: the full model.
        drop: how many blocks go, or which.
        reading: what the full model did with a text; needed where their number is given.

    Raises:
        InputError: there are fewer blocks, or a number is given without a text.
    """
    if not drop:
        return None
    name, layers = stack_of(outline_of(folder).model)
    count = len(layers)
    gone = drop if isinstance(drop, int) else len(drop)
    if not 0 < gone < count:
        raise InputError(f"1 to {count - 1} of the {count} blocks of {folder.path} can be removed, not {gone}")
    if isinstance(drop, int):
        assert reading is not None
        return KeptBlocks(name, count, least_influential(reading.influence, drop))
    outside = [index for index in drop if not 0 <= index < count]
    if outside:
        raise InputError(f"{folder.path} has blocks 0 to {count - 1}; there is no block {outside[0]}")
    return KeptBlocks(name, count, tuple(index for index in range(count) if index not in drop))


def planned(
    folder: ModelFolder, blocks: KeptBlocks | None, budget: Budget | None, asked: WidthRules, tell: Tell
) -> FolderPlan:
    """A plan that meets the budget.

    Raises:
        InputError: the channels can't be followed without weights, nothing asked for can go, or the budget is out of
            reach.
    """
    tell("following channels")
    full = outline_of(folder)
    coupling = traced(full)
    before = coupling.costs({})
    shallow, changed = full, dict[str, Any]()
    if blocks is not None:
        shallow, changed = _without_blocks(folder, full, blocks)
        coupling = traced(shallow)
    kinds = kinds_of(coupling, shallow.model)
    kept: Kept = {}
    refused: Mapping[str, str] = {}
    if budget is not None:
        kept, refused = _kept(folder, coupling, kinds, StreamedModel(shallow), before, budget, asked, tell)
    plan = coupling.plan(kept)
    after = coupling.costs(plan.kept)
    sequence = TOKENS * _SEQUENCES
    costs = {
        "macs": (before["macs"] // sequence, after["macs"] // sequence),
        "params": (before["params"], after["params"]),
    }
    wanted = asked.widths if budget is not None else ()
    widths = kept_widths(coupling, kinds, plan.kept, wanted)
    whole = {kind: why_whole(kind, coupling, shallow.model) for kind in wanted if kind not in kinds.values()}
    index_map = coupling.index_map(plan)
    return FolderPlan(blocks, changed, shallow, coupling, widths, index_map, costs, refused, whole)


def traced(outline: Outline) -> Coupling:
    """Follow the channels of a model without weights, or with them where it runs with them alone and they fit.

    Its parameters have the stored dtype meanwhile, because some operations need sizes to be multiples of so many bytes.

    Raises:
        InputError: the model can't be followed.
    """
    with _stored_dtypes(outline):
        found = _first_traced(outline.model)
    if isinstance(found, MapError) and _fits(outline):
        with StreamedModel(outline).present(outline.model.parameters()):
            found = _first_traced(outline.model)
    if isinstance(found, Coupling):
        return found
    raise InputError(
        f"the channels of a {type(outline.model).__name__} can't be followed ({message_of(found)}); without its "
        "weights its code does not run, or computes with numbers. Where it fits into memory, load it and call hfp.prune"
    )


def _first_traced(model: Any) -> Coupling | MapError:
    """Follow the channels with the first inputs that the model runs on; return the last error where it runs on none."""
    failed = MapError("it takes no inputs")
    for inputs in example_inputs(model, TOKENS, _SEQUENCES):
        try:
            return Coupling.trace(model, inputs, leave=partial(_no_width, model))
        except MapError as error:
            failed = error
    return failed


def _fits(outline: Outline) -> bool:
    """Whether a model, and two copies that following its channels takes, fit into the memory of this machine."""
    entries = sum(tensor.numel() for tensor in outline.weights.like.values())
    return entries * _ENTRY_BYTES * _COPIES <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _no_width(model: Any, coupling: Coupling) -> dict[str, str]:
    """The groups that are no width, such as a part of every head, with the reason why they stay."""
    kinds = kinds_of(coupling, model)
    return {name: "its code lets a part of every head go, but no whole head" for name in kinds if kinds[name] is None}


@contextmanager
def _stored_dtypes(outline: Outline) -> Iterator[None]:
    state = outline.model.state_dict(keep_vars=True)
    own = {name: state[name].data for name in outline.weights.like if isinstance(state[name], nn.Parameter)}
    try:
        for name in own:
            state[name].data = own[name].to(outline.weights.like[name].dtype)
        yield
    finally:
        for name, data in own.items():
            state[name].data = data


def _without_blocks(folder: ModelFolder, full: Outline, blocks: KeptBlocks) -> tuple[Outline, dict[str, Any]]:
    """The model without the removed blocks, and the fields of the configuration that say so.

    Raises:
        InputError: a model with fewer blocks has other tensors than the blocks that are kept.
    """
    changed = shallower(config_of(folder), blocks)
    kind = model_class(folder.config, str(folder.path))
    model = without_weights(config_of(folder, changed), kind)
    shapes = {name: tuple(tensor.shape) for name, tensor in full.model.state_dict().items()}
    for name, tensor in model.state_dict().items():
        if shapes.get(blocks.full_name(name)) != tuple(tensor.shape):
            raise InputError(
                f"a {folder.architecture} with {len(blocks.kept)} blocks has a tensor {name} that none of the kept "
                "blocks has; remove other blocks, or none"
            )
    names = {name: blocks.full_name(name) for name in model.state_dict()}
    kept = full.weights.renamed({name: other for name, other in names.items() if other in full.weights.like})
    return Outline(model, kept), changed


def _kept(
    folder: ModelFolder,
    coupling: Coupling,
    kinds: Mapping[str, str | None],
    streamed: StreamedModel,
    before: Mapping[str, int],
    budget: Budget,
    asked: WidthRules,
    tell: Tell,
) -> tuple[Kept, Mapping[str, str]]:
    """The channels that are kept so that the budget is met, and the groups without scores with the reason."""
    bundles, refused = _scored(coupling, kinds, streamed, asked, tell)
    bundles = _allowed(folder, bundles, coupling, kinds, streamed.model, asked)
    tell(f"meeting {budget}")
    order = Order.of(bundles, asked.rules)
    if budget.ratio is not None:
        return order.until(budget.ratio), refused

    def costs(kept: Kept) -> dict[str, float]:
        left = coupling.costs(kept)
        return {name: left[name] / before[name] for name in budget.costs}

    return meet(order, budget.costs, costs, budget.tolerance), refused


def _scored(
    coupling: Coupling, kinds: Mapping[str, str | None], streamed: StreamedModel, asked: WidthRules, tell: Tell
) -> tuple[list[Bundle], dict[str, str]]:
    """The scored groups of the widths that were asked for, and those without scores with the reason.

    Raises:
        InputError: no group is of these widths.
        CriterionError: no group can be scored.
    """
    wanted = {name for name in coupling.names if kinds[name] in asked.widths}
    if not wanted:
        raise InputError(nothing_goes(asked.widths, coupling, streamed.model, kinds))
    named = asked.criterion if isinstance(asked.criterion, str) else type(asked.criterion).__name__
    criterion = criteria.create(asked.criterion) if isinstance(asked.criterion, str) else asked.criterion
    count = len(wanted)
    streaming = StreamedCriterion(criterion, streamed, lambda done: tell(f"scoring, group {done} of {count}"))
    refused: dict[str, str] = {}
    while True:
        bundles, unscored = scored(coupling, streamed.model, streaming, named, wanted)
        if not unscored:
            return bundles, refused
        refused |= unscored
        wanted -= unscored.keys()


def _allowed(
    folder: ModelFolder,
    bundles: Sequence[Bundle],
    coupling: Coupling,
    kinds: Mapping[str, str | None],
    model: Any,
    asked: WidthRules,
) -> list[Bundle]:
    """The bundles that may lose channels, to sizes that a configuration can say where blocks stay alike.

    Raises:
        InputError: none can lose a part.
    """
    wide = {name: coupling.sizes[name] for name in coupling.names if kinds[name] == "feed-forward"}
    fields = fields_of(model.config, type(model), wide) if asked.uniform else None
    chosen = chosen_bundles(bundles, kinds, asked.widths, fields)
    if asked.uniform:
        sizes = {(kinds[name], coupling.sizes[name]) for each in chosen for name in each.scores}
        said = {pair: sizes_that_can_be_said(folder, model.config, str(pair[0]), pair[1]) for pair in sizes}
        able = {name: said.get((kinds[name], size)) for name, size in coupling.sizes.items()}
        chosen = [_with_sizes(each, able) for each in chosen]
    if too_coarse(chosen, asked.rules):
        raise InputError(
            f"no width can lose a part with round_to={asked.rules.round_to} and min_channels={asked.rules.min_channels}"
        )
    return chosen


def _with_sizes(bundle: Bundle, able: Mapping[str, Collection[int] | None]) -> Bundle:
    """The bundle whose groups may also have none but the numbers of channels that transformers can be told."""
    both = {
        name: [size for size in sizes if size in bundle.sizes.get(name, sizes)]
        for name in bundle.scores
        if (sizes := able[name])
    }
    return replace(bundle, sizes={**bundle.sizes, **both})
