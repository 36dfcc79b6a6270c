"""The arguments of ``hfp prune``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hfp import importance
from hfp.commands.arguments.prune_checks import check_arguments
from hfp.commands.arguments.prune_folder import check_folder_arguments, check_no_folder_options
from hfp.commands.arguments.settings import check_weights
from hfp.data import datasets
from hfp.data.load import check_root
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
        help="This model is pruned: a name of hfp's, timm's or torchvision's, module:factory, or hf:FOLDER, which is a "
        "language model in a folder of transformers and may be larger than memory.",
    )  # fmt: skip
    _configure_budget(parser.add_argument_group("budget", "Give at least one; --ratio stands alone."))
    _configure_output(parser.add_argument_group("output"))
    _configure_model(parser.add_argument_group("model"))
    _configure_ranking(parser.add_argument_group("what goes"))
    _configure_data(
        parser.add_argument_group(
            "data",
            "With data, --importance kronecker --ranking measured is recommended (examples/benchmarks/criteria.md).",
        )
    )
    _configure_finetuning(parser.add_argument_group("fine-tuning"))
    _configure_folder(parser.add_argument_group("language models", "These are for hf:FOLDER alone."))


def _configure_budget(group: argparse._ArgumentGroup) -> None:
    for name, text in KINDS.items():
        group.add_argument(f"--{name}", type=float, metavar="SHARE", help=f"The budget sets the {text}.")
    group.add_argument(
        "--tolerance", type=float, metavar="SHARE",
        help="A result that is further below the nearest limit than this share of it is refused. [default: none is]",
    )  # fmt: skip


def _configure_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="The pruned model is written to this file, as safetensors; of hf:FOLDER to this folder.",
    )
    group.add_argument(
        "--export",
        choices=("onnx",),
        help="The model is also exported beside FILE, with this ending, and checked with ONNX Runtime.",
    )
    group.add_argument("--picture", type=Path, metavar="PNG", help="What is left of every layer is drawn to this file.")
    group.add_argument(
        "--force",
        action="store_true",
        help="Files that exist are replaced, and an earlier .onnx file beside FILE is deleted.",
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="The report is printed as one JSON document, and all else goes to standard error.",
    )


def _configure_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--num-classes",
        type=int,
        metavar="N",
        help="The model has this many logits. [default: the data's classes, else the usual]",
    )
    group.add_argument(
        "--in-channels", type=int, metavar="N", help="Images have this many channels. [default: the data's, else 3]"
    )
    group.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="Images have sides of this length. [default: the data's, else the usual one]",
    )
    group.add_argument(
        "--pretrained",
        action="store_true",
        help="The model has timm's pretrained weights, which are downloaded where need be.",
    )
    group.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="The full model's weights are in this file, safetensors or a state_dict that torch.save wrote.",
    )
    group.add_argument(
        "--device",
        default="cpu",
        help="The model runs on this device of PyTorch: cpu, cuda, cuda:1 and so on. [default: cpu]",
    )


def _configure_ranking(group: argparse._ArgumentGroup) -> None:
    names = ", ".join(name for name in importance.names() if importance.describe(name).needs != "variation")
    group.add_argument(
        "--importance", "--criterion", default="l2", metavar="NAME",
        help=f"This criterion scores channels. [default: l2; one of {names}]",
    )  # fmt: skip
    group.add_argument(
        "--ranking", choices=(*RANKINGS, "uniform"),
        help="What goes is chosen in this way (layer: every group loses the same share; global: the lowest scores go "
        "first; isomorphic: every structure of layers loses the same share, and in each the lowest scores go first; "
        "measured: losses on the data decide; uniform, of hf:FOLDER: all blocks keep the same sizes). "
        "[default: layer; of hf:FOLDER, uniform]",
    )  # fmt: skip
    group.add_argument(
        "--round-to",
        type=int,
        metavar="N",
        help="Every pruned layer keeps a multiple of this many channels. [at least 1]",
    )
    group.add_argument(
        "--min-channels",
        type=int,
        default=1,
        metavar="N",
        help="Every layer keeps at least this many channels. [default: 1]",
    )
    group.add_argument(
        "--ignore", action="append", default=[], metavar="LAYER",
        help="This layer's outputs are left alone; it may be given several times.",
    )  # fmt: skip
    group.add_argument(
        "--part", metavar="MODULE",
        help="Only what runs inside the module of this name is pruned, and its outputs stay; the budget is its own.",
    )  # fmt: skip
    group.add_argument(
        "--keep-heads",
        action="store_true",
        help="Attention keeps its heads, which become narrower where that is exact; else whole heads go.",
    )
    group.add_argument(
        "--steps",
        type=int,
        default=1,
        metavar="N",
        help="The model is pruned in this many steps, and scored again before each. [default: 1]",
    )


def _configure_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data",
        metavar="NAME",
        help=f"Accuracy, scores and repairs are of this data set. [one of {', '.join(datasets())}]",
    )
    group.add_argument("--data-root", type=Path, metavar="PATH", help="The data set's files are in this folder.")
    group.add_argument(
        "--repair", action="append", default=[], choices=REPAIRS,
        help="What is left is repaired in this way, by one pass over the batches; it may be given several times and is "
        f"done in that order. [default with --data: {' and '.join(USUAL)}]",
    )  # fmt: skip
    group.add_argument("--no-repair", action="store_true", help="The weights stay as pruning left them.")
    group.add_argument(
        "--batch-size", type=int, metavar="N", help="A batch has this many images. [default: 64; at least 2]"
    )
    group.add_argument(
        "--batches", type=int, metavar="N", help="This many batches score and repair. [default: 16; at least 1]"
    )


def _configure_finetuning(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--finetune",
        type=int,
        default=0,
        metavar="EPOCHS",
        help="The pruned model is trained on the data for this many epochs. [default: 0]",
    )
    group.add_argument(
        "--learning-rate",
        "--lr",
        type=float,
        metavar="LR",
        help="Fine-tuning starts with this learning rate. [default: 0.01]",
    )
    group.add_argument(
        "--augment", action="store_true", help="The images of fine-tuning are shifted and mirrored at random."
    )


def _configure_folder(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--widths", action="append", choices=WIDTHS, default=[],
        help="This may become narrower, where heads are whole key-value groups; it may be given several times. "
        "[default: heads and feed-forward]",
    )  # fmt: skip
    group.add_argument(
        "--drop-blocks", metavar="N", default="",
        help="The N blocks that change least what they are given, measured on --text, are removed, or the blocks of "
        "these indices, such as 3,5. A comma makes one number an index: 3, is block 3 alone.",
    )  # fmt: skip
    group.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="Perplexity is measured before and after on the text in this file, in UTF-8.",
    )
    group.add_argument(
        "--window", type=int, metavar="N", help="A window of the text has this many tokens. [default: 512]"
    )


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
