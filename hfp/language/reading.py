"""How well a folder's model predicts a text."""

from __future__ import annotations

import os
from collections.abc import Callable

from hfp.devices import working_device
from hfp.language.folder import open_folder
from hfp.language.loading import compact_outline
from hfp.language.names import RECORD
from hfp.language.outline import Outline, outline_of
from hfp.language.perplexity import Perplexity, check_predicts, perplexity_of, read_text
from hfp.language.record import INDEX_MAP, PruneRecord
from hfp.language.stored import Layout
from hfp.language.streaming import StreamedModel
from hfp.pruning.progress import told
from hfp.reconstruct import load_index_map


def perplexity_of_folder(
    folder: str | os.PathLike[str],
    text: str | os.PathLike[str],
    *,
    window: int | None = None,
    device: str = "cpu",
    progress: bool | Callable[[str], None] | None = None,
) -> Perplexity:
    """Measure the perplexity of the language model in a folder, pruned or not, on a text.

    The text is cut into windows that do not overlap, and the first token of each is not predicted. The model runs in
    float32, with the weights of one block in memory at a time, so that it may be larger than memory.

    Args:
        folder: a folder of transformers with its tokenizer.
        text: a text file in UTF-8.
        window: tokens per window; by default 512, or as many as the model can take where those are fewer.
        device: where the model runs.
        progress: True shows what is being done; a function is called with it.

    Returns:
        The perplexity, and how many tokens were predicted.

    Raises:
        InputError: the folder holds no language model or no tokenizer, or the text can't be read.
        MapError: the index map of a pruned folder is damaged.
    """
    place = working_device(device)
    found = open_folder(folder)
    check_predicts(found)
    tokens = read_text(found, text, window)
    outline = outline_of(found) if not (found.path / RECORD).is_file() else None
    if outline is None:
        index_map = load_index_map(found.path / INDEX_MAP)
        model = compact_outline(found, PruneRecord.read(found.path), index_map)
        outline = Outline(model, Layout(model).weights(found))
    streamed = StreamedModel(outline, device=place)
    with told(progress) as tell:
        return perplexity_of(streamed, tokens, tell)
