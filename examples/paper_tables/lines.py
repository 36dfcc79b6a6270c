"""The lines of the data files beside the page, and the paper's own figures with ours beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, product
from pathlib import Path
from typing import Any

from data_files import Line, both, put, read

from hfp.comparison.definition import Comparison
from hfp.comparison.table import Row, Runs
from hfp.errors import InputError, file_errors
from hfp.federation.records import MEGABYTE

SETTING = ("study", "variant", "alpha", "size")
OF_A_ROUND = ("study", "variant", "alpha", "size", "seed", "round")
PUBLISHED = ("study", "model", "dataset", "variant", "alpha", "paper")
OF_ALL = ("dataset", "train_images", "model", "rounds")
NOT_RUN = "not run"


def put_found(
    page: Path, study: str, comparison: Comparison, asked: Comparison, runs: Runs, made: Sequence[Row]
) -> None:
    """Write the figures of all runs of a study that there are, and what is missing of those asked for."""
    with file_errors(f"the figures of {page} can't be written"):
        put_new(page.with_suffix(".csv"), SETTING, lines_of(study, comparison, asked, made))
        put_new(file_of_rounds(page), OF_A_ROUND, rounds_of(study, comparison, runs))


def put_beside(tables: Path, study: str, comparison: Comparison, made: Sequence[Row]) -> None:
    """Write what a study reached beside the paper's own figures."""
    with file_errors(f"{tables} can't be written"):
        lines = list(beside(read(tables), study, comparison, made))
        if lines:
            put(tables, PUBLISHED, lines)


def check_tables(tables: Path, studies: Sequence[str], base: Mapping[str, Any]) -> bool:
    """Refuse a file that has no figures of the paper; returns whether some are of these studies, network and data.

    Raises:
        InputError: it names the file.
    """
    with file_errors(f"--tables: {tables} can't be read"):
        lines = read(tables)
    if not lines or not {*PUBLISHED, "ours"} <= lines[0].keys():
        raise InputError(f"--tables: there are no figures of the paper in {tables}")
    return any(_is_of(line, studies, base) for line in lines)


def check_files(page: Path, base: Mapping[str, Any]) -> None:
    """Refuse data files beside a page whose figures are of another network, or of nothing that is known here.

    Raises:
        InputError: it names the file and what differs.
    """
    wanted = of_all(base)
    for file, setting in ((page.with_suffix(".csv"), SETTING), (file_of_rounds(page), OF_A_ROUND)):
        with file_errors(f"{file} can't be read"):
            lines = read(file)
        for line in lines:
            if not {*setting, "accuracy"} <= line.keys():
                raise InputError(f"{file} holds no figures of this command; give another page with --page")
            other = next((name for name, value in wanted.items() if line.get(name) not in (None, "", value)), None)
            if other:
                raise InputError(
                    f"the figures in {file} have {other} {line[other]}, and not {wanted[other]}; "
                    "give another page with --page"
                )


def file_of_rounds(page: Path) -> Path:
    """The data file with a line for each tested round of each run."""
    return page.with_name(f"{page.stem}-rounds.csv")


def put_new(file: Path, setting: Sequence[str], lines: Iterable[Line]) -> None:
    """Write the lines whose figures are new. A line of more seeds than the new one stays, as do figures as before."""
    known = {tuple(line[name] for name in setting): line for line in read(file)}
    new = []
    for line in lines:
        old = known.get(tuple(line[name] for name in setting))
        if old is None or (seeds_of(line) >= seeds_of(old) and _filled(line) != _filled(old)):
            new.append(line)
    if new:
        put(file, setting, new)


def seeds_of(line: Line) -> int:
    """How many seeds a line's figures are of; 0 where there are none yet."""
    return 0 if line["accuracy"] == NOT_RUN else int(line.get("seeds") or 1)


def _filled(line: Line) -> Line:
    return {name: value for name, value in line.items() if value and name not in ("commit", *OF_ALL)}


def of_all(base: Mapping[str, Any]) -> Line:
    """The columns that are the same in all lines of a file."""
    return {name: "all" if base[name] is None else str(base[name]) for name in OF_ALL}


def lines_of(study: str, comparison: Comparison, asked: Comparison, made: Sequence[Row]) -> Iterator[Line]:
    """A line of the data file for every cell of a study that has a result, or that is asked for."""
    found = {(row.variant, row.alpha, row.size): row for row in made}
    wanted = set(_cells(asked))
    for variant, alpha, size in _cells(comparison):
        row = found.get((variant, alpha, size))
        if row is None and (variant, alpha, size) not in wanted:
            continue
        line = {"study": study, "variant": variant, "alpha": f"{alpha:g}", "size": size}
        yield line | (_figures(row) if row else {"accuracy": NOT_RUN}) | of_all(comparison.base)


def _cells(comparison: Comparison) -> Iterator[tuple[str, float, str]]:
    for alpha, (size, _), variant in product(comparison.alphas, comparison.sizes, comparison.variants):
        yield variant.name, alpha, size


def beside(published: Iterable[Line], study: str, comparison: Comparison, made: Sequence[Row]) -> Iterator[Line]:
    """The lines of the paper's own figures that a study reached something new for, with it and what it took.

    A line with what more images, rounds or seeds reached stays.
    """
    found, same = {(row.variant, f"{row.alpha:g}"): row for row in made}, of_all(comparison.base)
    for line in published:
        row = found.get((line["variant"], line["alpha"]))
        if row and _is_of(line, [study], comparison.base):
            took = {"train_images": same["train_images"], "rounds": same["rounds"], "seeds": str(row.seeds)}
            reached = {**both("ours", row.accuracy), **took}
            before = {name: line.get(name) or "" for name in reached}
            fewer = any(_number(before[name]) > _number(took[name]) for name in took)
            if not fewer and before != reached:
                yield {**{name: line[name] for name in PUBLISHED}, **reached}


def _is_of(line: Line, studies: Sequence[str], base: Mapping[str, Any]) -> bool:
    return line["study"] in studies and (line["model"], line["dataset"]) == (base["model"], base["dataset"])


def _number(text: str) -> float:
    return math.inf if text == "all" else float(text or 0)


def _figures(row: Row) -> Line:
    return {
        **both("accuracy", row.accuracy),
        **both("difference", row.difference, "+.2f"),
        "seeds": str(row.seeds),
        "megabytes_up": f"{row.megabytes_up:.1f}",
        "megabytes_down": f"{row.megabytes_down:.1f}",
        "training_gmacs": f"{row.gmacs:.1f}",
        "device_seconds": f"{row.seconds:.0f}",
    }


def rounds_of(study: str, comparison: Comparison, runs: Runs) -> Iterator[Line]:
    """A line of the data file for every tested round of every run.

    A result of before a run's device was noted has the experiment's, such as cuda, in its place.
    """
    for (variant, alpha, size), results in runs.items():
        for seed, result in results.items():
            up = list(accumulate(record["bytes_up"] for record in result["history"]))
            for record, sent in zip(result["history"], up, strict=True):
                if record["accuracy"] is not None:
                    yield {
                        "study": study,
                        "variant": variant,
                        "alpha": f"{alpha:g}",
                        "size": size,
                        "seed": str(seed),
                        "round": str(record["round"]),
                        "accuracy": f"{record['accuracy']:.2f}",
                        **{name: _loss(record[name]) for name in ("loss", "train_loss")},
                        "megabytes_up": f"{sent / MEGABYTE:.1f}",
                        "device": result.get("device", result["experiment"]["device"]),
                    }


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
