"""What was asked of a folder's pruning and what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group
from rich.text import Text

from hfp.errors import InputError, listed
from hfp.language.perplexity import Perplexity
from hfp.language.widths import Width
from hfp.pruning.tables import cost_lines, cost_table, limit_lines


@dataclass(frozen=True, repr=False)
class FolderReport:
    """What was asked for and what came out.

    Args:
        folder: where the full model is.
        out: where the pruned one was written.
        architecture: the model's class in transformers.
        budget: as text, such as "macs=0.5"; empty where only blocks were removed.
        criterion: the name of the criterion.
        costs: "macs" (multiply-accumulates per token), "params" and "bytes" (of the weights' files): before and after.
        widths: what became of each width that might become narrower.
        removed_blocks: the indices of the blocks that are gone.
        blocks: how many blocks the full model has; 0 where its blocks can't be told.
        influence: how much each block changes what it is given, where the text was asked.
        plain: whether transformers reads the folder without hfp.
        perplexity: of the full and the pruned model, where a text was given.
        distance: limited cost -> how far below its limit the model is, as a share of the full model's cost.
        notes: sentences about what could not be done as asked.
    """

    folder: str
    out: str
    architecture: str
    budget: str
    criterion: str
    costs: Mapping[str, tuple[float, float]]
    widths: tuple[Width, ...]
    removed_blocks: tuple[int, ...] = ()
    blocks: int = 0
    influence: tuple[float, ...] = ()
    plain: bool = True
    perplexity: tuple[Perplexity, Perplexity] | None = None
    distance: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "perplexity": self._perplexities()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FolderReport:
        """Make a report of the values that `as_dict` gave.

        Raises:
            InputError: a value is missing or of another kind.
        """
        try:
            texts = {name: str(values[name]) for name in ("folder", "out", "architecture", "budget", "criterion")}
            return cls(
                **texts,
                costs={str(name): (float(before), float(after)) for name, (before, after) in values["costs"].items()},
                widths=tuple(
                    Width(str(width["kind"]), str(width["layer"]), _whole(width["before"]), _whole(width["after"]))
                    for width in values["widths"]
                ),
                removed_blocks=_whole(values["removed_blocks"]),
                blocks=int(values["blocks"]),
                influence=tuple(float(value) for value in values["influence"]),
                plain=bool(values["plain"]),
                perplexity=_perplexity(values["perplexity"]),
                distance={
                    name: float(values["distance"][name]) for name in values["costs"] if name in values["distance"]
                },
                notes=tuple(str(note) for note in values["notes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"the report of a pruned folder is damaged: {type(error).__name__}: {error}") from error

    def _perplexities(self) -> dict[str, Any] | None:
        if self.perplexity is None:
            return None
        full, pruned = self.perplexity
        return {"full": full.value, "pruned": pruned.value, "tokens": full.tokens, "windows": full.windows}

    def shown(self) -> Group:
        """The costs as a table, and the rest as lines."""
        return Group(
            Text(self.headline),
            *(Text(line) for line in limit_lines(self.costs, self.distance)),
            cost_table(self.costs),
            *(Text(line) for line in self._lines()),
        )

    @property
    def headline(self) -> str:
        """The result in a sentence."""
        to = f" to {self.budget} by {self.criterion}" if self.budget else ""
        before, after = self.costs["params"]
        return f"Pruned a {self.architecture}{to}: {after / before:.1%} of its weights are left."

    def _lines(self) -> Iterator[str]:
        for width in self.widths:
            yield f"{width.kind}: {_sizes(width.before)} -> {_sizes(width.after)} ({width.layer})"
        if self.removed_blocks:
            numbers = listed([str(index) for index in self.removed_blocks])
            yield f"blocks: {self.blocks} -> {self.blocks - len(self.removed_blocks)}, without {numbers}"
        if self.perplexity is not None:
            full, pruned = self.perplexity
            yield f"perplexity: {full.value:.4g} -> {pruned.value:.4g} on {full.tokens:,} tokens"
        yield from self.notes
        yield ("transformers reads the folder by itself" if self.plain else "read the folder with hfp.from_pretrained")

    def __repr__(self) -> str:
        return "\n".join([self.headline, *cost_lines(self.costs, self.distance), *self._lines()])


def _whole(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _perplexity(found: Mapping[str, Any] | None) -> tuple[Perplexity, Perplexity] | None:
    if found is None:
        return None
    tokens, windows = int(found["tokens"]), int(found["windows"])
    return Perplexity(float(found["full"]), tokens, windows), Perplexity(float(found["pruned"]), tokens, windows)


def _sizes(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
