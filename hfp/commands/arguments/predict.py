"""The arguments of ``hfp predict``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hfp.data.pixels import EXTENSIONS
from hfp.errors import InputError
from hfp.models.names import check_full_model
from hfp.results.files import check_run


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hfp predict``."""
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="The model is that of a run's folder, or of a file that hfp extract wrote.",
    )
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="These images are classified: files, or folders of them."
    )
    parser.add_argument(
        "--client", type=int, metavar="K", help="This client's own model is asked. [default: the global one]"
    )
    parser.add_argument(
        "--model",
        metavar="MODULE:FACTORY",
        help="The full model is made by this function, where the run was given its model in Python.",
    )
    parser.add_argument("--json", action="store_true", help="The result is printed as one JSON document.")


def check(arguments: argparse.Namespace) -> None:
    """Refuse, before torch is loaded, a run or images that are not there.

    Raises:
        InputError: there is no run, no such image, or a folder has none.
    """
    image_files(arguments.images)
    if not arguments.run.exists():
        raise InputError(f"there is no {arguments.run}; give a run's folder, or a file that hfp extract wrote")
    if arguments.run.is_dir():
        check_run(arguments.run)
    check_full_model(arguments.model)


def image_files(given: Sequence[Path]) -> list[Path]:
    """List the files among `given`, and the images in folders among them, at any depth, in order of name.

    Raises:
        InputError: there is no such file, or a folder has no images.
    """
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
            if not inside:
                raise InputError(f"there are no images in {path} ({', '.join(EXTENSIONS)})")
            files.extend(inside)
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"there is no image {path}")
    return files
