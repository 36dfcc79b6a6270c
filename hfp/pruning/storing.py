"""Save what `hfp.prune` made, and load it again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hfp.pruning.prune import PruneResult
from hfp.reconstruct.files import pruned_file as files
from hfp.reconstruct.files.skeletons import TimmModel


def save_pruned(
    result: PruneResult,
    path: str | os.PathLike[str],
    timm: TimmModel | None = None,
    *,
    input_shape: Sequence[int] | None = None,
) -> Path:
    """Write a pruned model to one safetensors file, with how it was pruned as metadata.

    Args:
        result: from `hfp.prune`.
        path: the file.
        timm: the full model's name and arguments, if timm has it; `load_pruned` then needs no skeleton.

        input_shape: of one image that costs were counted with, (channels, height, width); for ``hfp inspect``.

    Raises:
        MapError: something of it can't be stored, or the timm model is not the full one. Nothing was written.
        OSError: the file can't be written.
    """
    report = result.report
    metadata = {
        "criterion": report.criterion,
        "budget": report.budget,
        "costs": {k: list(v) for k, v in report.costs.items()},
        "repairs": [repair.kind for repair in report.repairs],
        **({} if input_shape is None else {"input": list(input_shape)}),
    }
    return files.save_pruned(result.model, result.index_map, path, timm=timm, metadata=metadata)
