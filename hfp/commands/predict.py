"""``hfp predict``: what a run's model, or a client's own, says about images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from hfp.commands.arguments.predict import image_files
from hfp.commands.printing import print_json
from hfp.errors import InputError, printable
from hfp.results.classifier import Prediction, TrainedClassifier
from hfp.results.load import is_run, load_run, load_submodel


def run(arguments: argparse.Namespace) -> int:
    """Classify every image and print its class; returns 0."""
    paths = image_files(arguments.images)
    classifier = load_classifier(arguments.run, arguments.client, arguments.model)
    found = classifier.predict(paths)
    for line in conversions(found, classifier.input.shape[0]):
        print(f"hfp predict: {line}", file=sys.stderr)
    if arguments.json:
        print_json(document(arguments.run, paths, found, classifier.classes))
        return 0
    console = Console(highlight=False)
    for path, prediction in zip(paths, found, strict=True):
        line = printable(f"{path}: {prediction.label} ({prediction.probability:.1%})")
        console.print(line, soft_wrap=True, markup=False)
    return 0


def load_classifier(path: Path, client: int | None, model: str | None) -> TrainedClassifier:
    """Load the model to ask: a run's global one or a client's, or that of a file.

    Raises:
        InputError, MapError: it can't be loaded.
    """
    if not is_run(path):
        if client is not None:
            raise InputError(f"{path} is one client's model already; give --client with a run's folder")
        return load_submodel(path, model)
    found = load_run(path, model)
    return found if client is None else found.submodel(client)


def conversions(found: Sequence[Prediction], channels: int) -> list[str]:
    """Say, in a sentence each, how many images were converted because the model takes another number of channels."""
    lines = []
    for how in sorted({prediction.converted for prediction in found} - {""}):
        count = sum(prediction.converted == how for prediction in found)
        lines.append(
            f"{count} of {len(found)} images {'was' if count == 1 else 'were'} converted {how}, because the model "
            f"takes {channels} channel{'s' * (channels > 1)}"
        )
    return lines


def document(run: Path, paths: Sequence[Path], found: Sequence[Prediction], classes: Sequence[str]) -> dict[str, Any]:
    """Make the JSON document of ``hfp predict --json``."""
    return {
        "run": str(run),
        "classes": list(classes),
        "images": [
            {
                "image": str(path),
                "class": prediction.label,
                "probability": prediction.probability,
                "probabilities": list(prediction.probabilities),
                "converted": prediction.converted or None,
            }
            for path, prediction in zip(paths, found, strict=True)
        ],
    }
