"""Which criterion picks the right channels, and what does it cost?

    python examples/benchmarks/criteria.py --root cifar10=PATH --data examples/benchmarks/criteria.csv

Networks are trained here and kept in --cache. The protocols run on each, for every criterion of ours and of
torch-pruning (its Hessian corrected, its activation criterion left out because it keeps one batch alone):

- alone: remove each channel by itself, measure the loss on test images, and rank-correlate that with the scores;
- once: remove 20, 30, 50 and 70 % of the multiply-accumulates at once; test accuracy without repair, with batch-norm
  statistics taken anew, and with the closed-form repair;
- steps: the same in ten steps with new scores and batch-norm statistics at each;
- tuned: at once, then one epoch over --tune-images;
- retrained: at once, then --retrain-epochs over the training images;
- published: torch-pruning's own recipes by its own pruner, without sparse learning and with as many epochs of it;
- time: scoring data, as a ratio of a plain forward and backward over the same batches, processor time, median of five.

Results are JSON lines (--results) and nothing that is there is run again, so that it can be stopped at any time;
--data writes the figures to the page's data files, whose names begin with the given one's, and the plot beside them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from criteria_study.alone import run_alone
from criteria_study.cutting import accuracy
from criteria_study.entries import ENTRIES
from criteria_study.log import Log, read
from criteria_study.networks import Sizes, trained
from criteria_study.plot import draw
from criteria_study.pruned import RATIOS, REPAIRS, Choice, run_once, run_retrained, run_steps, run_tuned
from criteria_study.published import run_published
from criteria_study.report import FILES
from criteria_study.timing import run_time
from data_files import put

PROTOCOLS = {
    "once": run_once,
    "alone": run_alone,
    "tuned": run_tuned,
    "steps": run_steps,
    "time": run_time,
    "retrained": run_retrained,
    "published": run_published,
}
USUAL = ("once", "alone", "tuned", "steps", "time")
NETWORKS = ("fmnist/vgg-small/0.5", "fmnist/resnet20/0.5", "cifar10/vgg-small/0.5", "cifar10/resnet20/0.5")


def main() -> None:
    """Read the command line, run what is missing, write the figures."""
    given = _parser().parse_args()
    torch.set_num_threads(given.threads)
    epochs = {name: int(count) for name, count in _pairs(given.epochs).items()}
    sizes = Sizes(
        epochs,
        given.train_images,
        given.score_images,
        given.test_images,
        given.alone_images,
        given.tune_images,
        given.retrain_epochs,
    )
    choice = Choice(tuple(given.criteria), tuple(given.ratios), tuple(given.repairs))
    for protocol in given.protocols:
        for seed in given.seeds:
            for name in given.networks:
                network = trained(name, seed, sizes, given.cache, _pairs(given.root))
                log = Log(given.results, name, seed)
                if log.wants(protocol="trained"):
                    log.add(protocol="trained", accuracy=accuracy(network.model, network.test))
                PROTOCOLS[protocol](network, log, choice)
    if given.data:
        rows = read(given.results)
        for name, (setting, figures) in FILES.items():
            if lines := list(figures(rows)):
                put(given.data.with_stem(given.data.stem + name), setting, lines)
        draw(rows, given.data.with_suffix(".png"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=NETWORKS, metavar="DATASET/MODEL/WIDTH")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--protocols", nargs="+", default=USUAL, choices=PROTOCOLS)
    parser.add_argument("--criteria", nargs="+", default=list(ENTRIES), choices=ENTRIES, metavar="NAME")
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS, metavar="SHARE")
    parser.add_argument("--repairs", nargs="+", default=list(REPAIRS), choices=REPAIRS, metavar="NAME")
    parser.add_argument("--root", nargs="*", default=[], metavar="DATASET=PATH", help="where a data set lies")
    parser.add_argument("--epochs", nargs="*", default=["fmnist=2", "cifar10=4"], metavar="DATASET=N")
    parser.add_argument("--train-images", type=int, default=40_000, help="per epoch")
    parser.add_argument("--score-images", type=int, default=256, help="for criteria and repairs")
    parser.add_argument("--test-images", type=int, default=1000, help="for accuracy")
    parser.add_argument("--alone-images", type=int, default=500, help="test images for leaving one out")
    parser.add_argument("--tune-images", type=int, default=5000, help="for one epoch of fine-tuning")
    parser.add_argument("--retrain-epochs", type=int, default=2, help="over the training images, after pruning")
    parser.add_argument("--cache", type=Path, default=Path("runs/criteria"))
    parser.add_argument("--results", type=Path, default=Path("runs/criteria/results.jsonl"))
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="write the figures to this data file and others beside"
    )
    parser.add_argument("--threads", type=int, default=1)
    return parser


def _pairs(items: list[str]) -> dict[str, str]:
    return dict(item.split("=", 1) for item in items)


if __name__ == "__main__":
    main()
