"""One HTML page of a run, made from its folder. It opens from disk, has no scripts, fetches nothing, is light or dark.

It has the curves, every client's figures, the channels that each client trained last, and which channels somebody
trained from round to round.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hfp.errors import InputError
from hfp.federation.records import IN_TIME, LOST, megabytes_in
from hfp.pages import page_from
from hfp.results.charts import LIGHT, Line, line_chart, variables
from hfp.results.files import METRICS
from hfp.results.load import read_history
from hfp.results.overview import run_overview
from hfp.results.submodels import read_plans

COLOUR = (11, 128, 150)
"""The colour of pictures, which can be seen on white and on black."""

History = Sequence[Mapping[str, Any]]


def run_page(folder: Path) -> str:
    """Make the whole page from the template `results/page.html.jinja`.

    Args:
        folder: a run's folder with at least one finished round.

    Raises:
        InputError: the folder is not a run's, a file in it is damaged, or matplotlib isn't installed.
    """
    about, history = run_overview(folder), read_history(folder / METRICS)
    try:
        return page_from(
            "results/page.html.jinja",
            about=about,
            variables=variables(),
            colours=len(LIGHT),
            charts=charts_of(history),
            clients=clients_of(history),
            masks=masks_of(folder),
            coverage=coverage_of(history),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / METRICS} is damaged: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Chart:
    """A chart as an SVG element, and its curves' names by their colour's number where there are several."""

    svg: str
    legend: tuple[tuple[int, str], ...]


def charts_of(history: History) -> list[Chart]:
    """Draw the curves of a run: accuracy by round and by megabytes moved, losses, and clients' own models."""
    moved = megabytes_in(history)
    rounds = [float(line["round"]) for line in history]
    accuracy, f1 = _column(history, "accuracy"), _column(history, "f1")
    loss, train_loss = _column(history, "loss"), _column(history, "train_loss")
    own, shared = _column(history, "personal", "own"), _column(history, "personal", "shared")
    wanted = (
        ("Accuracy by round", "round", "percent", rounds, {"accuracy": accuracy, "macro F1": f1}),
        ("Accuracy by traffic", "megabytes moved, up and down", "percent", moved, {"accuracy": accuracy}),
        ("Loss by round", "round", "cross-entropy", rounds, {"test": loss, "training": train_loss}),
        ("On data like the clients'", "round", "percent", rounds, {"own models": own, "global model": shared}),
    )
    made = []
    for title, x_label, y_label, places, curves in wanted:
        lines = [
            Line(name, index, [(x, y) for x, y in zip(places, values, strict=True) if y is not None])
            for index, (name, values) in enumerate(curves.items())
        ]
        lines = [line for line in lines if line.points]
        if lines:
            legend = tuple((line.index, line.name) for line in lines) if len(lines) > 1 else ()
            made.append(Chart(line_chart(title, x_label, y_label, lines), legend))
    return made


def _column(history: History, name: str, inside: str = "") -> list[float | None]:
    found = [line.get(name) for line in history]
    return [value[inside] if value else None for value in found] if inside else found


@dataclass(frozen=True)
class ClientRow:
    """One client over the whole run, and in the last round in which it was heard of (percent, images, counts).

    What is known only of clients that were heard of is None for the others.
    """

    client: int
    ratio: float
    samples: int
    parameters: int | None
    device: str
    asked: int
    lost: str
    loss: float | None
    own: float | None
    shared: float | None


def clients_of(history: History) -> list[ClientRow]:
    """Gather what became of every client."""
    seen: dict[int, list[Mapping[str, Any]]] = {}
    accuracy: dict[int, Mapping[str, Any]] = {}
    for line in history:
        for entry in line["clients"]:
            seen.setdefault(entry["client"], []).append(entry)
        for entry in (line.get("personal") or {}).get("clients", ()):
            accuracy[entry["client"]] = entry
    return [_client_row(client, entries, accuracy.get(client, {})) for client, entries in sorted(seen.items())]


def _client_row(client: int, entries: History, accuracy: Mapping[str, Any]) -> ClientRow:
    heard = [entry for entry in entries if entry["status"] not in LOST]
    last = (heard or entries)[-1]
    lost = Counter(entry["status"] for entry in entries if entry["status"] != IN_TIME)
    return ClientRow(
        client=client,
        ratio=last["ratio"],
        samples=last["samples"],
        parameters=last["parameters"] if heard else None,
        device=last["device"],
        asked=len(entries),
        lost=", ".join(f"{count} {status}" for status, count in lost.items()),
        loss=last["loss"] if heard else None,
        own=accuracy.get("own"),
        shared=accuracy.get("shared"),
    )


@dataclass(frozen=True)
class Picture:
    """A picture with a name; `data` is its address, which holds the picture itself."""

    name: str
    about: str
    data: str
    rows: int


def masks_of(folder: Path) -> list[Picture]:
    """Draw, for each coupled group, which of its channels every client trained last: a row a client."""
    sizes, plans = read_plans(folder)
    made = []
    for name, size in sizes.items():
        if not any(name in plan.kept for plan in plans):
            continue
        kept = np.ones((len(plans), size))
        for row, plan in enumerate(plans):
            if name in plan.kept:
                kept[row] = np.isin(np.arange(size), plan.kept[name])
        shared, nobody = int((kept.all(0)).sum()), int((~kept.any(0)).sum())
        made.append(
            Picture(name, f"{size} channels: {shared} with every client, {nobody} with none", _png(kept), len(plans))
        )
    return made


def coverage_of(history: History) -> Picture | None:
    """Draw the share of every group's channels that somebody trained in each round; None if it was not measured.

    A round without replies has no diagnostics, since nobody trained anything in it.
    """
    found = [line["diagnostics"]["coverage"] if line.get("diagnostics") else {} for line in history]
    names = list(next(filter(None, found), ()))
    if not names:
        return None
    shares = np.array([[coverage.get(name, 0.0) for coverage in found] for name in names])
    least = min(zip(shares.min(1), names, strict=True))
    about = f"least: {least[0]:.0%} of {least[1]} in one round"
    return Picture("coverage", about, _png(shares), len(names))


def _png(shares: np.ndarray) -> str:
    """Draw shares `[rows, columns]` in [0, 1] as a picture whose opacity is the share, a pixel each."""
    pixels = np.zeros((*shares.shape, 4), dtype=np.uint8)
    pixels[..., :3], pixels[..., 3] = COLOUR, np.round(255 * shares)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
