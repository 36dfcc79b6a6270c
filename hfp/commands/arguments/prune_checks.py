"""What ``hfp prune`` refuses before torch is loaded: files in the way, and options that would be ignored."""

from __future__ import annotations

import argparse
from pathlib import Path

from hfp import importance
from hfp.commands.arguments.targets import check_image_size, check_target
from hfp.data.load import IMAGES
from hfp.errors import InputError, repeated
from hfp.models.names import is_factory
from hfp.pruning.budget import KINDS, Budget

_LEAST = {
    "num_classes": 1, "in_channels": 1, "batch_size": 2, "batches": 1, "round_to": 1, "min_channels": 1, "steps": 1,
}  # fmt: skip
_MOST = 1_000_000  # images per batch, and for the learning rate; PyTorch's numbers have bounds


def onnx_path(out: Path) -> Path:
    """Return where the exported model of ``--out`` is."""
    return out.with_suffix(".onnx")


def checked_budget(arguments: argparse.Namespace) -> Budget:
    """Return the budget of the command line.

    Raises:
        InputError: none is given, or a number is out of its range.
    """
    limits = {name: getattr(arguments, name) for name in KINDS}
    if all(value is None for value in limits.values()):
        raise InputError(f"one of {', '.join(f'--{name}' for name in KINDS)} is required")
    return Budget(**limits, tolerance=arguments.tolerance)


def check_once(arguments: argparse.Namespace, *options: str) -> None:
    """Make sure that options that may be given several times have each value once.

    Raises:
        InputError: a value is given twice.
    """
    for option in options:
        if (twice := repeated(getattr(arguments, option))) is not None:
            raise InputError(f"--{option} {twice} is given twice; give it once")


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check all that can be checked without the model and the data.

    Raises:
        InputError: a number out of its range, an option that would be ignored or a value that is given twice, or a
            file that can't be written.
    """
    checked_budget(arguments)
    check_once(arguments, "repair", "ignore")
    _check_numbers(arguments)
    _check_used(arguments)
    if arguments.data in IMAGES:
        check_images(arguments, arguments.data, *IMAGES[arguments.data])
    _check_targets(arguments)


def _check_numbers(arguments: argparse.Namespace) -> None:
    check_image_size(arguments.image_size)
    for option, least in _LEAST.items():
        value = getattr(arguments, option)
        if value is not None and value < least:
            raise InputError(f"--{option.replace('_', '-')} is at least {least}, not {value}")
    if arguments.batch_size is not None and arguments.batch_size > _MOST:
        raise InputError(f"--batch-size is at most {_MOST:,}, not {arguments.batch_size}")
    if arguments.finetune < 0:
        raise InputError(f"--finetune is a number of epochs, at least 0, not {arguments.finetune}")
    if arguments.learning_rate is not None and not 0 < arguments.learning_rate <= _MOST:
        raise InputError(f"--learning-rate is a number above 0 and at most {_MOST:,}, not {arguments.learning_rate}")


def _check_used(arguments: argparse.Namespace) -> None:
    """Refuse options that need another one which is missing."""
    scores = importance.describe(arguments.importance).needs == "data"
    measures = arguments.ranking == "measured"
    if arguments.data is None:
        if scores:
            raise InputError(f"criterion {arguments.importance!r} scores with images: --data NAME")
        if measures:
            raise InputError("--ranking measured measures losses on images: --data NAME")
        for option in ("finetune", "repair", "data_root", "batch_size", "batches"):
            if getattr(arguments, option):
                raise InputError(f"--{option.replace('_', '-')} needs images: --data NAME")
    if arguments.repair and arguments.no_repair:
        raise InputError("--repair and --no-repair exclude each other; give one")
    passes = scores or measures or (arguments.data is not None and not arguments.no_repair)
    if arguments.batches is not None and not passes:
        raise InputError("--batches is for criteria that use data, --ranking measured and repairs; none is asked for")
    if arguments.batch_size is not None and not (passes or arguments.finetune):
        raise InputError("--batch-size is for criteria that use data, --ranking measured, repairs and --finetune")
    for option in ("learning_rate", "augment"):
        if getattr(arguments, option) and not arguments.finetune:
            raise InputError(f"--{option.replace('_', '-')} is for --finetune EPOCHS, which is not asked for")
    if arguments.pretrained and arguments.weights is not None:
        raise InputError("--pretrained and --weights both say where the weights come from; give one")
    if arguments.num_classes is not None and is_factory(arguments.model):
        raise InputError(f"--num-classes does not reach {arguments.model}: a factory is called without arguments")


def check_classes(arguments: argparse.Namespace, name: str, classes: int) -> None:
    """Make sure that the model can tell the classes of the data apart.

    Raises:
        InputError: it has fewer logits than the data has classes.
    """
    if arguments.num_classes is not None and arguments.num_classes < classes:
        raise InputError(f"--num-classes {arguments.num_classes} is less than the {classes} classes of {name}")


def check_images(arguments: argparse.Namespace, name: str, channels: int, size: int) -> None:
    """Make sure that what the command line says of the images is what they are.

    Raises:
        InputError: the images have another number of channels or another size.
    """
    if arguments.in_channels not in (None, channels):
        raise InputError(
            f"--in-channels {arguments.in_channels} is not the {channels} of the images of {name}; leave the option out"
        )
    if arguments.image_size not in (None, size):
        raise InputError(
            f"--image-size {arguments.image_size} is not the {size} of the images of {name}; "
            "leave the option out (images of --data imagefolder are resized)"
        )


def _check_targets(arguments: argparse.Namespace) -> None:
    """Refuse targets that can't be written, or that exist."""
    check_target(arguments.out)
    targets = [arguments.out, onnx_path(arguments.out), *([] if arguments.picture is None else [arguments.picture])]
    if len({path.resolve() for path in targets}) < len(targets):
        raise InputError(f"--out, its .onnx file and --picture are different files, not {arguments.out} twice")
    for path, ending in zip(targets[1:], (".onnx", ".png"), strict=False):
        check_target(path, ending)
    if arguments.weights is not None and arguments.weights.resolve() in [path.resolve() for path in targets]:
        raise InputError(f"{arguments.weights} holds the --weights, which the pruned model would replace")
    if arguments.force:
        return
    for path in targets:
        if path.exists():
            stale = path == onnx_path(arguments.out) and not arguments.export
            raise InputError(
                f"{path} exists{', and would not be of the new model' if stale else ''}; give another name, or --force "
                f"to {'delete' if stale else 'replace'} it"
            )
