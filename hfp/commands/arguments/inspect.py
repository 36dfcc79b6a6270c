"""The arguments of ``hfp inspect``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hfp.commands.arguments.targets import check_image_size, check_target
from hfp.errors import InputError
from hfp.language.choices import PREFIX
from hfp.language.names import RECORD, holds_language_model
from hfp.models.names import check_full_model, check_model_name
from hfp.results.files import check_run


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hfp inspect``."""
    parser.add_argument(
        "file",
        type=Path,
        metavar="PATH",
        help="This is shown: a run's folder, a file that hfp prune, hfp extract or hfp.save_pruned wrote, a language "
        "model's folder that hfp prune wrote, or a full model by its name or module:factory.",
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="The full model of a file that does not name it has this name, or is made by module:factory.",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="Costs are counted for images with sides of this length. [default: the model's usual one]",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="PNG",
        help="What is left of every layer of a pruned model is drawn to this file.",
    )
    parser.add_argument(
        "--inputs",
        metavar="MODULE:FUNCTION",
        help="A full model is called with what this function without arguments returns, which is at least two samples. "
        "[default: two images, or the model's own dummy_inputs]",
    )
    parser.add_argument(
        "--part", metavar="MODULE", help="Of a full model only what runs inside the module of this name is looked at."
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="A page that opens from disk is written to this file: of a run with its curves, clients and masks, of a "
        "full model with its coupled groups, or of a pruned model with these and what is left of them.",
    )
    parser.add_argument("--json", action="store_true", help="The result is printed as one JSON document.")


def check(arguments: argparse.Namespace) -> None:
    """Refuse, before torch is loaded, what is neither a file nor the name of a model, and files that can't be written.

    Raises:
        InputError: there is no such file or folder and no model of this name, the folder is neither a run's nor a
            pruned language model's, a size is out of its range, or a file can't be written.
    """
    path = arguments.file
    check_image_size(arguments.image_size)
    for target, ending in ((arguments.picture, ".png"), (arguments.html, ".html")):
        if target is not None:
            check_target(target, ending)
    check_full_model(arguments.model)
    if path.is_dir():
        if (path / RECORD).is_file():
            return
        if holds_language_model(path):
            raise InputError(
                f"{path} holds a language model of transformers that hfp did not prune; prune it with "
                f"hfp prune {PREFIX}{path}, and give the folder that is written"
            )
        check_run(path)
    elif not path.exists():
        try:
            check_model_name(str(path))
        except InputError as error:
            raise InputError(f"there is no file {path}, and no model of this name: {error}") from error
