"""Perplexity of a language model on a text, with the weights of one block in memory at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hfp.errors import InputError, message_of
from hfp.language.folder import ModelFolder
from hfp.language.outline import transformers

WINDOW, AT_ONCE = 512, 4
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    Args:
        value: e to the power of the mean negative log-likelihood of a predicted token; lower is better.
        tokens: how many tokens were predicted: all but the first of each window.
        windows: into how many windows the text was cut.
    """

    value: float
    tokens: int
    windows: int


@dataclass(frozen=True)
class Text:
    """A text as tokens, cut into windows that do not overlap; the last one may be shorter.

    Args:
        batches: token ids, `[windows, tokens]` each.
    """

    batches: tuple[Tensor, ...]

    @property
    def windows(self) -> int:
        """How many windows there are."""
        return sum(len(batch) for batch in self.batches)


def read_text(folder: ModelFolder, path: str | os.PathLike[str], window: int | None = None) -> Text:
    """Read a text file as tokens of a folder's tokenizer.

    Args:
        folder: the model's folder, which holds the tokenizer.
        path: a text file in UTF-8.
        window: tokens per window; by default 512, or as many as the model can take where those are fewer.

    Raises:
        InputError: the file can't be read or is too short, the folder holds no tokenizer, or the window is not a whole
            number of at least 2 that the model can take.
    """
    return cut(_tokens(folder, Path(path)), _window(folder, window), str(path))


def cut(tokens: Tensor, window: int, where: str = "the text") -> Text:
    """Cut tokens `[tokens]` into windows, several of which are run at once.

    Raises:
        InputError: there are fewer than two tokens.
    """
    if len(tokens) < 2:
        raise InputError(f"{where} has {len(tokens)} tokens; at least 2 are needed to predict one")
    whole = len(tokens) // window
    batches = list(tokens[: whole * window].view(whole, window).split(AT_ONCE)) if whole else []
    rest = tokens[whole * window :]
    return Text((*batches, rest[None]) if len(rest) > 1 else tuple(batches))


@torch.no_grad()
def perplexity_of(model: Any, text: Text, tell: Tell = lambda _: None) -> Perplexity:
    """The perplexity of a model that is called with `input_ids` and returns logits.

    Raises:
        InputError: it returns no logits that predict the next token, or some that are NaN.
    """
    total, count = 0.0, 0
    for done, batch in enumerate(text.batches, 1):
        tell(f"reading the text, batch {done} of {len(text.batches)}")
        for losses in _losses(model, batch):
            total += float(losses.cpu().double().sum())  # not every device has float64
            count += losses.numel()
    if math.isnan(total):
        raise InputError("the model gives NaN for tokens of the text; look for NaN in its weights")
    return Perplexity(math.exp(min(total / count, 700.0)), count, text.windows)


def _losses(model: Any, batch: Tensor) -> Iterator[Tensor]:
    """The negative log-likelihoods of the tokens of each window but its first."""
    outputs = model(input_ids=batch, use_cache=False)
    logits = getattr(outputs, "logits", None)
    if logits is None or logits.dim() != 3:
        raise InputError("perplexity is of models that predict the next token; this one returns no such logits")
    for own, tokens in zip(logits, batch, strict=True):
        yield cross_entropy(own[:-1].float(), tokens[1:].to(own.device), reduction="none")


def check_predicts(folder: ModelFolder) -> None:
    """Refuse a model that does not predict the next token.

    Raises:
        InputError: its class is no language model that reads from left to right.
    """
    transformers()
    auto = import_module("transformers.models.auto.modeling_auto")
    if folder.architecture not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise InputError(
            f"a text is read by models that predict the next token; {folder.architecture} of {folder.path} is none"
        )


def _tokens(folder: ModelFolder, path: Path) -> Tensor:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} can't be read as a text in UTF-8: {reason}") from error
    try:
        tokenizer = transformers().AutoTokenizer.from_pretrained(folder.path, local_files_only=True)
    except Exception as error:
        raise InputError(
            f"{folder.path} holds no tokenizer that transformers reads ({message_of(error)}); copy "
            "the files of the model's tokenizer into it"
        ) from error
    found = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if text.strip() and not found:  # transformers makes an empty tokenizer where there are no files of one
        raise InputError(
            f"the tokenizer of {folder.path} finds no token in {path}; copy the files of the model's tokenizer into "
            "that folder"
        )
    return torch.tensor(found, dtype=torch.long)


def _window(folder: ModelFolder, window: int | None) -> int:
    most = folder.config.get("max_position_embeddings") or folder.config.get("n_positions")
    limit = most if isinstance(most, int) and most > 1 else None
    if window is None:
        return min(WINDOW, limit or WINDOW)
    if isinstance(window, bool) or not isinstance(window, Integral) or int(window) < 2:
        raise InputError(f"a window is a whole number of tokens, at least 2, not {window!r}")
    if limit is not None and window > limit:
        raise InputError(f"a window of {window} tokens is more than the {limit} that {folder.path} can take")
    return window
