"""Prune a timm model to half of its multiply-accumulates, see what happened to every layer, save it and load it again.

python examples/prune_timm.py
python examples/prune_timm.py --model swin_tiny_patch4_window7_224 --size 224 --macs 0.4 --pretrained
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from rich.console import Console

import hfp
from hfp.reconstruct import TimmModel


def main() -> None:
    """Parse, prune, save, load, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64, help="side of the images")
    parser.add_argument("--macs", type=float, default=0.5, help="share that remains")
    parser.add_argument("--pretrained", action="store_true", help="with timm's weights (a download)")
    parser.add_argument("--out", type=Path, default=Path("pruned.safetensors"))
    arguments = parser.parse_args()

    model = timm.create_model(arguments.model, pretrained=arguments.pretrained).eval()
    images = torch.randn(2, 3, arguments.size, arguments.size)
    result = hfp.prune(model, images, hfp.Budget(macs=arguments.macs))
    Console().print(result.report.shown())

    hfp.save_pruned(result, arguments.out, timm=TimmModel(arguments.model))
    again = hfp.load_pruned(arguments.out).model  # the file names a timm model: no skeleton is needed
    with torch.no_grad():
        same = torch.equal(again(images), result.model.eval()(images))
    print(f"written to {arguments.out}; the loaded model gives {'the same' if same else 'OTHER'} outputs")


if __name__ == "__main__":
    main()
