"""The arguments of ``hfp prune``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hfp import importance
from hfp.commands.arguments.prune_checks import check_arguments
from hfp.commands.arguments.prune_folder import check_folder_arguments, check_no_folder_options
from hfp.commands.arguments.settings import check_root, check_weights
from hfp.data import datasets
from hfp.devices import check_device
from hfp.errors import unknown
from hfp.language.choices import PREFIX, WIDTHS
from hfp.models.names import check_model_name
from hfp.pruning.budget import KINDS
from hfp.pruning.choices import RANKINGS
from hfp.pruning.repair import REPAIRS, USUAL

_END = """\
Several limits may be given together; the pruned model meets all of them, from below and as near as its steps allow.
Exit status: 0; 1 when the file is written but its measured latency is above --latency; 2 for a wrong input or a budget
out of reach, when nothing is written.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hfp prune``."""
    parser.epilog = _END
    parser.add_argument(
        "model", metavar="MODEL",
        help="a model's name (ours, timm's, torchvision's), module:factory, or hf:FOLDER: a language model in a folder "
        "of transformers, which may be larger than memory",
    )  # fmt: skip
    _configure_budget(parser.add_argument_group("budget", "Give at least one; --ratio stands alone."))
    _configure_output(parser.add_argument_group("output"))
    _configure_model(parser.add_argument_group("model"))
    _configure_ranking(parser.add_argument_group("what goes"))
    _configure_data(
        parser.add_argument_group(
            "data",
            "Recommended with data (examples/benchmarks/criteria.md): --importance kronecker --ranking measured",
        )
    )
    _configure_finetuning(parser.add_argument_group("fine-tuning"))
    _configure_folder(parser.add_argument_group("language models", "For hf:FOLDER alone."))


def _configure_budget(group: argparse._ArgumentGroup) -> None:
    for name, text in KINDS.items():
        group.add_argument(f"--{name}", type=float, metavar="SHARE", help=text)
    group.add_argument(
        "--tolerance", type=float, metavar="SHARE",
        help="refuse a result that is further below the nearest limit than this share of it (default: any distance)",
    )  # fmt: skip


def _configure_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="write the pruned model as safetensors; of hf:FOLDER, a folder",
    )
    group.add_argument("--export", choices=("onnx",), help="also write FILE.onnx, and check it with ONNX Runtime")
    group.add_argument("--picture", type=Path, metavar="PNG", help="draw what is left of every layer")
    group.add_argument("--force", action="store_true", help="replace files that exist")
    group.add_argument("--json", action="store_true", help="print the report as JSON; all else goes to standard error")


def _configure_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--num-classes", type=int, metavar="N", help="logits of the model (default: the data's classes, else the usual)"
    )
    group.add_argument(
        "--in-channels", type=int, metavar="N", help="channels of the images (default: the data's, else 3)"
    )
    group.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="side of the images (default: the data's, else the usual one)"
    )
    group.add_argument("--pretrained", action="store_true", help="load timm's weights (a download)")
    group.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="load the full model's state (safetensors, or torch.save's)",
    )
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps ... (default: cpu)")


def _configure_ranking(group: argparse._ArgumentGroup) -> None:
    names = ", ".join(name for name in importance.names() if importance.describe(name).needs != "variation")
    group.add_argument(
        "--importance", "--criterion", default="l2", metavar="NAME",
        help=f"the criterion that scores channels, one of {names} (default: l2)",
    )  # fmt: skip
    group.add_argument(
        "--ranking", choices=(*RANKINGS, "uniform"),
        help="layer: every group loses the same share; global: the lowest scores go first; measured: losses on the "
        "data decide; uniform, of hf:FOLDER: all blocks keep the same sizes (default: layer; of hf:FOLDER, uniform)",
    )  # fmt: skip
    group.add_argument("--round-to", type=int, metavar="N", help="leave a multiple of N channels in every pruned layer")
    group.add_argument(
        "--min-channels", type=int, default=1, metavar="N", help="leave at least N channels in every layer (default: 1)"
    )
    group.add_argument(
        "--ignore", action="append", default=[], metavar="LAYER",
        help="leave this layer's outputs alone; may be given several times",
    )  # fmt: skip
    group.add_argument(
        "--part", metavar="MODULE",
        help="prune only what runs inside the module of this name, and keep its outputs; the budget is of that part",
    )  # fmt: skip
    group.add_argument("--keep-heads", action="store_true", help="prune inside attention heads, not whole heads")
    group.add_argument(
        "--steps", type=int, default=1, metavar="N", help="prune in N steps, scoring again before each (default: 1)"
    )


def _configure_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data", metavar="NAME", help=f"measure accuracy, score and repair with one of {', '.join(datasets())}"
    )
    group.add_argument("--data-root", type=Path, metavar="PATH", help="the folder that holds the data's files")
    group.add_argument(
        "--repair", action="append", default=[], choices=REPAIRS,
        help="repair by one pass over the batches; may be given several times, done in that order "
        f"(default with --data: {' and '.join(USUAL)})",
    )  # fmt: skip
    group.add_argument("--no-repair", action="store_true", help="leave the weights as pruning left them")
    group.add_argument("--batch-size", type=int, metavar="N", help="images per batch (default: 64)")
    group.add_argument("--batches", type=int, metavar="N", help="batches to score and repair with (default: 16)")


def _configure_finetuning(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--finetune", type=int, default=0, metavar="EPOCHS", help="train the pruned model on the data")
    group.add_argument(
        "--learning-rate", "--lr", type=float, metavar="LR", help="learning rate of the first step (default: 0.01)"
    )
    group.add_argument(
        "--augment", action="store_true", help="shift and mirror the images of fine-tuning at random (default: off)"
    )


def _configure_folder(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--widths", action="append", choices=WIDTHS, default=[],
        help="what may become narrower: heads are whole key-value groups; may be given several times (default: heads "
        "and feed-forward)",
    )  # fmt: skip
    group.add_argument(
        "--drop-blocks", metavar="N", default="",
        help="remove the N blocks that change least what they are given, measured on --text; or the blocks of these "
        "indices, such as 3,5 (3, is block 3 alone)",
    )  # fmt: skip
    group.add_argument(
        "--text", type=Path, metavar="FILE", help="measure perplexity before and after on this text, in UTF-8"
    )
    group.add_argument("--window", type=int, metavar="N", help="tokens per window of the text (default: 512)")


def check(arguments: argparse.Namespace) -> None:
    """Refuse, before torch is loaded, names that nobody knows and all that can be said without the model.

    Raises:
        InputError, CriterionError: an unknown name, a number out of its range, an option that would be ignored, or
        a file that can't be written.
    """
    if arguments.model.startswith(PREFIX):
        check_folder_arguments(arguments)
        return
    check_no_folder_options(arguments)
    arguments.ranking = arguments.ranking or "layer"
    check_model_name(arguments.model)
    importance.describe(arguments.importance)
    check_device(arguments.device)
    if arguments.data is not None and arguments.data not in datasets():
        raise unknown("data set", arguments.data, datasets())
    check_arguments(arguments)
    check_weights(arguments.weights)
    check_root(arguments.data_root, arguments.data)
