"""Train a network, prune it, repair the small one, put it back into the full one and go on training that.

    python examples/restore_and_continue.py

Needs the `examples` extra (scikit-learn's digits).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hfp
from hfp.data import Dataset, load_dataset
from hfp.pruning.finetuning import accuracy, finetune
from hfp.training.batch_norm import estimate


def main() -> None:
    """Train, prune, repair, restore, go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="of each of the three trainings")
    parser.add_argument("--images", type=int, default=None, help="training images; default: all")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    digits = load_dataset("digits", limit=arguments.images)
    full = hfp.create_model("resnet8", num_classes=10, in_channels=1)
    finetune(full, digits, arguments.epochs, learning_rate=0.05, augmented=False)
    report("full network, trained", full, digits)

    images = digits.normalise(digits.train.images[:256])
    batches = [(images, digits.train.labels[:256])]
    result = hfp.prune(
        full, images[:2], hfp.Budget(macs=0.4), importance="taylor", data=batches, loss_fn=cross_entropy,
        repair=None,  # training repairs it here
    )  # fmt: skip
    report("pruned to 40 % of its multiply-accumulates", result.model, digits)

    finetune(result.model, digits, arguments.epochs, augmented=False)
    report("pruned, repaired", result.model, digits)

    restored = restore(full, result.index_map, result.model.state_dict())
    estimate(restored, [images])  # batch-norm statistics of a mixture of two networks are those of neither
    report("restored: the repaired channels in their old places, the others as they were", restored, digits)

    finetune(restored, digits, arguments.epochs, augmented=False)
    report("restored, trained on", restored, digits)


def restore(full: nn.Module, index_map: hfp.reconstruct.IndexMap, compact: Mapping[str, Tensor]) -> nn.Module:
    """The full network with the compact one's weights in their old places."""
    full.load_state_dict(index_map.embed(compact, into=full.state_dict()))
    return full


def report(what: str, model: nn.Module, digits: Dataset) -> None:
    """One line."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{accuracy(model, digits):6.1%} of the test images, {parameters:,} parameters: {what}")


if __name__ == "__main__":
    main()
