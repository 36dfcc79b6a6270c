"""The arguments of ``hfp prune``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hfp import importance
from hfp.data import datasets
from hfp.errors import unknown
from hfp.models.names import check_model_name
from hfp.pruning.choices import RANKINGS, REPAIRS

BUDGETS = {
    "macs": "share of the multiply-accumulates that remains",
    "params": "share of the parameters that remains",
    "bytes": "share of the file's bytes that remains",
    "latency": "share of the time of a forward pass that remains, measured on this machine",
    "ratio": "share of the channels of every coupled group that is removed",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hfp prune``."""
    parser.add_argument("model", metavar="MODEL", help="a model's name (ours, timm's, torchvision's) or module:factory")
    budget = parser.add_mutually_exclusive_group(required=True)
    for name, text in BUDGETS.items():
        budget.add_argument(f"--{name}", type=float, metavar="SHARE", help=text)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the pruned model, as safetensors")
    _configure_model(parser.add_argument_group("model"))
    _configure_ranking(parser.add_argument_group("what goes"))
    data = parser.add_argument_group(
        "data",
        "Recommended with data (examples/benchmarks/criteria.md): --importance kronecker --ranking measured "
        "--repair least-squares --repair batch-norm",
    )
    data.add_argument("--data", metavar="NAME", help=f"score and repair with one of {', '.join(datasets())}")
    data.add_argument("--data-root", type=Path, metavar="PATH", help="where its files are")
    data.add_argument(
        "--repair",
        action="append",
        default=[],
        choices=REPAIRS,
        help="repair by one pass over the batches; may be given several times, done in that order",
    )
    data.add_argument("--finetune", type=int, default=0, metavar="EPOCHS", help="train the pruned model on")
    data.add_argument(
        "--learning-rate", "--lr", type=float, default=0.01, metavar="LR", help="of the training (default: 0.01)"
    )
    data.add_argument("--batch-size", "--bs", type=int, default=64, metavar="N", help="default: 64")
    data.add_argument("--batches", type=int, default=16, metavar="N", help="to score and repair with (default: 16)")
    parser.add_argument("--export", choices=("onnx",), help="also write FILE.onnx, and check it with ONNX Runtime")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw what is left of every layer")
    parser.add_argument("--json", action="store_true", help="print the report as JSON; progress goes to standard error")


def _configure_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--num-classes", type=int, metavar="N", help="default: the data's, else the model's usual ones")
    group.add_argument("--in-channels", type=int, default=3, metavar="N", help="default: 3")
    group.add_argument("--image-size", type=int, metavar="PIXELS", help="default: the model's usual size")
    group.add_argument("--pretrained", action="store_true", help="load timm's weights (a download)")
    group.add_argument("--weights", type=Path, metavar="FILE", help="the full model's state, as safetensors")
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps ... (default: cpu)")


def _configure_ranking(group: argparse._ArgumentGroup) -> None:
    names = ", ".join(name for name in importance.names() if importance.describe(name).needs != "variation")
    group.add_argument("--importance", default="l2", metavar="NAME", help=f"one of {names} (default: l2)")
    group.add_argument("--ranking", choices=RANKINGS, default="layer", help="default: layer; measured needs data")
    group.add_argument("--round-to", type=int, metavar="N", help="leave a multiple of N channels in every pruned layer")
    group.add_argument("--min-channels", type=int, default=1, metavar="N", help="what every layer keeps (default: 1)")
    group.add_argument(
        "--ignore", action="append", default=[], metavar="LAYER", help="leave this layer's outputs alone"
    )
    group.add_argument("--keep-heads", action="store_true", help="prune inside attention heads, not whole heads")
    group.add_argument("--steps", type=int, default=1, metavar="N", help="go in N steps, scoring again before each")


def check(arguments: argparse.Namespace) -> None:
    """Refuse names that nobody knows before torch is loaded.

    Raises:
        InputError, CriterionError: a model, a data set or a criterion that there isn't.
    """
    check_model_name(arguments.model)
    importance.describe(arguments.importance)
    if arguments.data is not None and arguments.data not in datasets():
        raise unknown("data set", arguments.data, datasets())
