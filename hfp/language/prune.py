"""Prune a folder of transformers into another one, without the model in memory: plan, write, check, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfp import importance as criteria
from hfp.errors import InputError, listed, message_of, repeated
from hfp.language.checking import check_finite, difference, outputs_without
from hfp.language.choices import RANKINGS
from hfp.language.configuration import first_mismatch, narrower, tensors_that_match
from hfp.language.folder import CONFIG, ModelFolder, open_folder
from hfp.language.names import RECORD
from hfp.language.outline import Outline, config_of, model_class, outline_of, without_weights
from hfp.language.perplexity import Text, check_predicts, perplexity_of, read_text
from hfp.language.planning import FolderPlan, TextRun, WidthRules, chosen_blocks, planned, read_by_full_model
from hfp.language.record import INDEX_MAP, PruneRecord
from hfp.language.report import FolderReport
from hfp.language.stored import Layout
from hfp.language.streaming import StreamedModel, check_streams
from hfp.language.widths import checked_widths
from hfp.language.writing import (
    SHARD_BYTES,
    NewTensors,
    check_target,
    copy_companions,
    finish,
    free_target,
    unfinished_folder,
    write_json,
    write_shards,
)
from hfp.pruning.budget import Budget
from hfp.pruning.progress import Tell, told
from hfp.pruning.request import check_criterion
from hfp.pruning.schedule import RankingRules
from hfp.reconstruct import MapError, compact_model, save_index_map

_OTHER_WAY = "ask for other widths, or remove blocks instead (drop_blocks)"
_BY_PLACE = "what its blocks compute may depend on their place, so ask for widths alone"


def prune_folder(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    budget: Budget | None = None,
    *,
    widths: str | Sequence[str] = ("heads", "feed-forward"),
    drop_blocks: int | Sequence[int] = 0,
    text: str | os.PathLike[str] | None = None,
    window: int | None = None,
    importance: str | Callable[[Any], Tensor] = "l2",
    ranking: str = "uniform",
    round_to: int | None = None,
    min_channels: int = 1,
    shard_bytes: int = SHARD_BYTES,
    replace: bool = False,
    progress: bool | Callable[[str], None] | None = None,
) -> FolderReport:
    """Prune the model in a folder of transformers, and write a folder of the same kind.

    The model may be larger than memory: it is planned without weights, and scored, written, checked and run on a text
    with the weights of one block, or of one new shard, in memory at a time (scoring takes about four times one layer in
    float32). Before the new folder gets its name, its model and the full one without what was removed are run on
    made-up tokens, and must agree.

    Args:
        folder: a folder with config.json and safetensors, as `save_pretrained` writes it.
        out: the folder to write. It holds the compact weights, a configuration, the tokenizer's files, the index map
            and a record (``hfp_prune.json``), with which `hfp.from_pretrained` reads it.
        budget: what shall remain of the full model, blocks included; macs, params and bytes may be limited, or ratio.
            None where only blocks are removed.
        widths: what may become narrower: some of "heads" (whole key-value groups), "feed-forward" and "hidden".
        drop_blocks: how many blocks to remove: those that change least what they are given, by the cosine between their
            inputs and outputs on the text (ShortGPT, arXiv 2403.03853). Or the indices of the blocks to remove.
        text: a text file in UTF-8. The report then has the perplexity before and after.
        window: tokens per window of the text; by default 512, or as many as the model can take.
        importance: a criterion's name or a callable, as in `hfp.prune`; it scores by weights alone.
        ranking: "uniform": every block keeps as many channels of a kind, so that transformers reads the folder by
            itself. "layer" and "global": as in `hfp.prune`; blocks may differ, and `hfp.from_pretrained` reads them.
        round_to: leave a multiple of this many outputs in every layer that loses some.
        min_channels: how many outputs every layer keeps at least.
        shard_bytes: the most bytes of a shard of the new folder. 1 GiB by default.
        replace: whether to replace `out` where it is a folder of a pruned model.
        progress: True shows what is being done; a function is called with it.

    Returns:
        What was asked for and what came out. Where another program has written `out` meanwhile, that stays, and the
        new folder has a number behind its name, which a warning and the report's `out` say.

    Raises:
        InputError: something given can't be used, the model can't be pruned without weights in memory, or the folder
            can't be written. Nothing is left of an unfinished folder.
        CriterionError: the criterion is unknown or has no score for any group.
        MapError: the pruned model does not compute what it should. Nothing is written then.
    """
    out, rules = Path(out), _rules(widths, importance, ranking, round_to, min_channels)
    drop = _checked_drop(drop_blocks)
    _check_request(budget, drop, text, shard_bytes)
    check_target(out, replace, [folder])
    source = open_folder(folder)
    with torch.inference_mode(False), told(progress) as tell:
        tokens = None
        if text is not None:
            check_predicts(source)
            tokens = read_text(source, text, window)
        return _pruned(_Job(source, out, budget, drop, tokens, rules, shard_bytes, replace, tell))


@dataclass(frozen=True)
class _Job:
    """A request that was checked; the fields are the arguments of `prune_folder`."""

    folder: ModelFolder
    out: Path
    budget: Budget | None
    drop: int | tuple[int, ...]
    text: Text | None
    rules: WidthRules
    shard_bytes: int
    replace: bool
    tell: Tell


def _rules(
    widths: str | Sequence[str], importance: Any, ranking: str, round_to: int | None, min_channels: int
) -> WidthRules:
    if ranking not in RANKINGS:
        raise InputError(f"ranking is one of {', '.join(RANKINGS)} for a folder, not {ranking!r}")
    check_criterion(importance)
    if isinstance(importance, str):
        check_streams(criteria.describe(importance).needs, importance)
    uniform = ranking == "uniform"
    limits = RankingRules("layer" if uniform else ranking, round_to, min_channels)
    return WidthRules(checked_widths(widths), importance, uniform, limits)


def _checked_drop(drop: Any) -> int | tuple[int, ...]:
    """How many blocks go, or which."""
    several = isinstance(drop, Iterable) and not isinstance(drop, str)
    found: Any = tuple(drop) if several else drop
    for each in found if several else (found,):
        if not isinstance(each, Integral) or isinstance(each, bool) or int(each) < 0:
            raise InputError(f"drop_blocks is how many blocks go, or a list of their indices, not {found!r}")
    if not several:
        return int(found)
    if (twice := repeated(found)) is not None:
        raise InputError(f"drop_blocks lists block {twice} twice; list each once")
    return tuple(map(int, found))


def _check_request(budget: Any, drop: int | tuple[int, ...], text: Any, shard_bytes: Any) -> None:
    if budget is not None and not isinstance(budget, Budget):
        raise InputError(f"expected a Budget, got {type(budget).__name__}")
    if budget is None and not drop:
        raise InputError("nothing is asked for: give a budget, or say how many blocks to remove")
    if budget is not None and budget.latency is not None:
        raise InputError("latency can't be limited here: the model isn't in memory; limit macs")
    if isinstance(drop, int) and drop and text is None:
        raise InputError(f"which {drop} blocks to remove is measured on a text; give one, or the indices of the blocks")
    if not isinstance(shard_bytes, Integral) or isinstance(shard_bytes, bool) or int(shard_bytes) < 1:
        raise InputError(f"shard_bytes is a whole number of bytes, at least 1, not {shard_bytes!r}")


def _pruned(job: _Job) -> FolderReport:
    reading = None
    if job.text is not None:
        reading = read_by_full_model(job.folder, job.text, isinstance(job.drop, int) and job.drop > 0, job.tell)
    blocks = chosen_blocks(job.folder, job.drop, reading)
    plan = planned(job.folder, blocks, job.budget, job.rules, job.tell)
    tensors = _new_tensors(plan)
    needed = sum(each.bytes for each in tensors)
    with unfinished_folder(job.out, needed) as unfinished:
        write_shards(unfinished, tensors, job.shard_bytes, job.tell)
        copy_companions(job.folder, unfinished)
        save_index_map(plan.index_map, unfinished / INDEX_MAP)
        streamed, reason = _checked(job, plan, unfinished)
        report = _report(job, plan, reading, streamed, reason, needed)
        name = free_target(job.out, job.replace)
        report = replace(report, out=str(name))
        record = PruneRecord.of(job.folder, plan.changed, blocks, not reason, report.as_dict())
        write_json(unfinished / RECORD, record.as_dict())
        finish(unfinished, name, job.out, job.replace)
    return report


def _new_tensors(plan: FolderPlan) -> list[NewTensors]:
    """The compact tensors, in the order in which the full ones are stored."""
    weights, maps = plan.shallow.weights, plan.index_map.tensors
    layout = Layout(compact_model(plan.shallow.model, plan.index_map))

    def made(unit: tuple[str, ...]) -> dict[str, Tensor]:
        return layout.stored({name: maps[name].restrict(weights.read(name)) for name in unit})

    return [
        NewTensors(sum(weights.bytes(name, maps[name].compact_shape) for name in unit), partial(made, unit))
        for unit in weights.units
    ]


def _checked(job: _Job, plan: FolderPlan, unfinished: Path) -> tuple[StreamedModel, str]:
    """The pruned model, and why its configuration does not say its sizes; nothing where it does.

    Raises:
        MapError: it does not compute what it should.
    """
    job.tell("checking with numbers")
    full = partial(outline_of, job.folder)
    try:
        expected = outputs_without(full(), plan)
    except (RuntimeError, NotImplementedError) as error:  # its code reads weights of other blocks
        raise InputError(
            f"the full {job.folder.architecture} can't be run block by block ({message_of(error, 99)}), so "
            "that a pruned one can't be checked; load it and call hfp.prune"
        ) from error
    check_finite(expected, plan.shallow.weights, job.folder)
    fields, reason = _plain_fields(job.folder, plan)
    if fields is not None:
        write_json(unfinished / CONFIG, {**job.folder.config, **plan.changed, **fields})
        pruned = open_folder(unfinished)
        kind = model_class(pruned.config, str(unfinished))
        streamed = _streamed(without_weights(config_of(pruned), kind), pruned)
        found = difference(expected, streamed, full)
        if found is None:
            return streamed, ""
        reason = f"with these sizes in its configuration a {kind.__name__} computes something else ({found})"
    write_json(unfinished / CONFIG, {**job.folder.config, **plan.changed})
    streamed = _streamed(compact_model(plan.shallow.model, plan.index_map), open_folder(unfinished))
    found = difference(expected, streamed, full)
    if found is not None:
        raise MapError(
            f"the pruned {job.folder.architecture} does not compute what it should, so it is not written: {found}; "
            + (_OTHER_WAY if plan.blocks is None else _BY_PLACE)
        )
    return streamed, reason


def _plain_fields(folder: ModelFolder, plan: FolderPlan) -> tuple[dict[str, Any] | None, str]:
    """The fields of a configuration that has the compact shapes; None where there is none, with the reason."""
    config, kind = config_of(folder, plan.changed), model_class(folder.config, str(folder.path))
    named = type(config).__name__
    fields = narrower(config, plan.widths, partial(tensors_that_match, kind, plan.index_map))
    if fields is None:
        if any(len(width.after) > 1 for width in plan.widths):
            return None, "its blocks have different sizes"
        kinds = listed([width.kind for width in plan.widths if narrower(config, [width], lambda _: 1) is None])
        return None, f"{named} has no field for a model of the same head size with less of {kinds}"
    try:
        own = config_of(folder, {**plan.changed, **fields})
    except InputError as error:  # transformers refuses some sizes, such as widths that the heads do not divide
        return None, f"{named} does not take these sizes ({error})"
    wrong = first_mismatch(own, kind, plan.index_map)
    return (fields, "") if wrong is None else (None, f"by {named} {wrong}")


def _streamed(model: Any, pruned: ModelFolder) -> StreamedModel:
    return StreamedModel(Outline(model, Layout(model).weights(pruned)))


def _report(
    job: _Job, plan: FolderPlan, reading: TextRun | None, streamed: StreamedModel, reason: str, needed: int
) -> FolderReport:
    costs: Mapping[str, tuple[float, float]] = {**plan.costs, "bytes": (job.folder.bytes, needed)}
    perplexities = None
    if job.text is not None and reading is not None:
        after = perplexity_of(streamed, job.text, lambda words: job.tell(f"pruned model: {words}"))
        perplexities = (reading.perplexity, after)
    criterion = job.rules.criterion
    budget = job.budget
    return FolderReport(
        folder=str(job.folder.path),
        out=str(job.out),
        architecture=job.folder.architecture,
        budget="" if budget is None else str(budget),
        criterion=criterion if isinstance(criterion, str) else type(criterion).__name__,
        costs=costs,
        widths=plan.widths,
        removed_blocks=() if plan.blocks is None else plan.blocks.removed,
        blocks=0 if plan.blocks is None else plan.blocks.count,
        influence=() if reading is None else reading.influence,
        plain=not reason,
        perplexity=perplexities,
        distance={} if budget is None else budget.distances(costs),
        notes=_notes(plan, reason),
    )


def _notes(plan: FolderPlan, reason: str) -> tuple[str, ...]:
    """What of the widths that were asked for could not go, and why transformers needs hfp to read the folder."""
    notes = [f"{kind} can't become narrower: {reason}" for kind, reason in plan.whole.items()]
    if plan.unscored:
        name, reason = next(iter(plan.unscored.items()))
        notes.append(f"left alone: {len(plan.unscored)} groups without scores, such as that of {name}: {reason}")
    if reason:
        notes.append(f"transformers can't be told these sizes: {reason}")
    return tuple(notes)
