"""A data set of your own: which of scikit-learn's two photographs does a patch of 16×16 pixels come from?

    python examples/custom_dataset.py

For folders of images there is nothing to write: `hfp run --dataset imagefolder --data-root FOLDER`. Data that only
Python needs, or that are no images, need no name: `hfp.Experiment(dataset=hfp.data.from_tensors(...), model=...)`.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_sample_images

import hfp
from hfp.data import DataRequest, Dataset, Split, make_dataset, register_dataset

SIDE = 16


def load_patches(request: DataRequest) -> Dataset:
    """The left three quarters of both photographs to train on, the right quarters to test on."""
    sample = load_sample_images()
    train, test = [], []
    for label, photograph in enumerate(sample.images):
        pixels = torch.from_numpy(photograph.copy()).permute(2, 0, 1)  # [3, height, width], uint8
        patches = (
            pixels.unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE).permute(1, 2, 0, 3, 4)
        )  # [rows, columns, 3, 16, 16]
        border = 3 * patches.shape[1] // 4
        for part, some in ((train, patches[:, :border]), (test, patches[:, border:])):
            images = some.reshape(-1, 3, SIDE, SIDE)
            part.append((images, torch.full((len(images),), label)))
    images, labels = (torch.cat(parts) for parts in zip(*train, strict=True))
    chosen = request.select(labels.numpy())  # honours --train-images and the seed
    names = tuple(name.removesuffix(".jpg").split("/")[-1] for name in sample.filenames)
    tested = Split(*(torch.cat(parts) for parts in zip(*test, strict=True)))
    return make_dataset(request.name, Split(images[chosen], labels[chosen]), tested, names)


def main() -> None:
    """Five clients with photographs in different proportions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--images", type=int, default=None, help="training images (default: all)")
    arguments = parser.parse_args()
    register_dataset("photographs", load_patches)
    experiment = hfp.Experiment(
        dataset="photographs", clients=5, alpha=0.5, rounds=arguments.rounds, train_images=arguments.images
    )
    run = hfp.simulate(experiment)
    print(f"{run.accuracy:.1f} % of the test patches after {len(run.history)} rounds, {run.bytes_up / 1e6:.1f} MB up")


if __name__ == "__main__":
    main()
