"""A picture of what a pruning left of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hfp.atomic import whole_file
from hfp.errors import InputError, printable
from hfp.pruning.layers_report import LayerReport

_KEPT, _GONE = "#0b7285", "#dee2e6"
_MOST = 400  # rows; more would be an unreadable strip
_LETTERS = 80  # of a name; more would leave no room for the bars


def save_layer_picture(layers: Sequence[LayerReport], path: Path, title: str) -> None:
    """Draw a bar for each layer, with kept channels in colour and removed ones in grey, as a PNG at `path`.

    Raises:
        InputError: matplotlib isn't installed.
        OSError: the file can't be written. One that was there before is untouched then.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError('no picture: matplotlib is missing; pip install "hfp[examples]"') from error
    shown = [layer for layer in layers if layer.inputs is not None][:_MOST] or list(layers)[:_MOST]
    figure = Figure(figsize=(9, max(2.5, 0.22 * len(shown) + 1.2)), layout="constrained")
    axes = figure.subplots()
    places = range(len(shown))
    axes.barh(places, [layer.before for layer in shown], color=_GONE, label="removed")
    axes.barh(places, [layer.after for layer in shown], color=_KEPT, label="kept")
    axes.set_yticks(places, [_literal(layer.name) for layer in shown], fontsize=7)
    for place, layer in enumerate(shown):
        axes.text(layer.before, place, f" {layer.after}/{layer.before}", va="center", fontsize=6)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("output channels")
    axes.set_title(_literal(title), fontsize=10)
    figure.legend(loc="outside upper right", ncols=2, fontsize=8)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)


def _literal(name: str) -> str:
    """Return a name as matplotlib draws it: of a bounded length, without mathematics and control characters."""
    text = printable(name)
    return (text if len(text) <= _LETTERS else f"...{text[3 - _LETTERS :]}").replace("$", r"\$")
