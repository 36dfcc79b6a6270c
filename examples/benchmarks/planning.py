"""How long does it take to plan a pruning, beside torch-pruning's build and step on the same model?

Prints one line per network, with random weights: the ratio of `hfp.prune` to half of the multiply-accumulates, by the
default criterion, to the building of torch-pruning's dependency graph and one step of its pruner; then the processor
time of planning a language model of a billion parameters without weights. Both sides of a ratio run one after the
other in every repeat, as processor time of one thread, so that other work on the machine disturbs little. With --data
the figures are written to the page's data file.

    python examples/benchmarks/planning.py --repeats 5 --data examples/benchmarks/planning.csv
"""

from __future__ import annotations

import argparse
import copy
import gc
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch_pruning as tp
from data_files import Line, put
from torch import Tensor, nn
from torch.nn import functional as F

import hfp
from hfp.reconstruct import Coupling

NETWORKS = {
    "resnet50": 64, "mobilenetv3_large_100": 64, "regnety_008": 64, "efficientnet_b0": 64,
    "deit_small_patch16_224": 224,
}  # fmt: skip
TARGET = 3


class Block(nn.Module):
    """A layer of a language model as Llama has them: attention and a gated network, each after a norm."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.back = nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] to the same."""
        batch, tokens, _ = x.shape
        normed = self.before(x)
        query, key, value = (
            layer(normed).view(batch, tokens, self.heads, self.size).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.size**-0.5)
        x = x + self.back(mixed.transpose(1, 2).reshape(batch, tokens, self.heads * self.size))
        normed = self.between(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class LanguageModel(nn.Module):
    """A model of the kind of Llama: 1.3 thousand million parameters with these sizes."""

    def __init__(self, words: int = 32000, width: int = 2048, layers: int = 22, heads: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.blocks = nn.ModuleList([Block(width, heads, 5632) for _ in range(layers)])
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, tokens] to [batch, tokens, words]."""
        x = self.words(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def seconds(work: Callable[[], object]) -> float:
    """Processor time of `work`."""
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def by_torch_pruning(model: nn.Module, x: Tensor) -> None:
    """torch-pruning's own build and step, which remove half of the channels, or of the heads of attention."""
    heads = {module.qkv: module.num_heads for module in model.modules() if hasattr(module, "qkv")}
    tp.pruner.BasePruner(
        model, x, tp.importance.MagnitudeImportance(), pruning_ratio=0.5, ignored_layers=[model.get_classifier()],
        num_heads=heads, prune_num_heads=bool(heads),
    ).step()  # fmt: skip


def measured(name: str, size: int, repeats: int) -> Line:
    """The ratio of one network as a line of the data file, after one unmeasured run of each side."""
    model, x = timm.create_model(name).eval(), torch.randn(1, 3, size, size)
    ours, theirs = [], []
    for _ in range(repeats + 1):
        victim = copy.deepcopy(model)
        theirs.append(seconds(lambda victim=victim: by_torch_pruning(victim, x)))
        ours.append(seconds(lambda: hfp.prune(model, x, hfp.Budget(macs=0.5))))
    ratios = [mine / other for mine, other in zip(ours[1:], theirs[1:], strict=True)]
    median = statistics.median(ratios)
    return {
        "figure": f"hfp.prune / build + step ({name}, {size} pixels)",
        "unit": "ratio",
        "repeats": str(repeats),
        "median": f"{median:.1f}",
        "lowest": f"{min(ratios):.1f}",
        "highest": f"{max(ratios):.1f}",
        "target": f"<= {TARGET}",
        "met": "yes" if median <= TARGET else "no",
    }


def language_model() -> Line:
    """The time of following a language model without weights and counting a plan of half its channels."""
    with torch.device("meta"):
        model = LanguageModel()
    tokens = torch.zeros(1, 16, dtype=torch.long)

    def plan() -> None:
        coupling = Coupling.trace(model, tokens)
        coupling.costs(coupling.plan({name: range(size // 2) for name, size in coupling.sizes.items()}).kept)

    took = seconds(plan)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{'peak memory of the process':<62} {peak:>5.1f} GB")
    return {
        "figure": f"plan a language model of {count:.1f} thousand million parameters without weights",
        "unit": "seconds",
        "repeats": "1",
        "median": f"{took:.0f}",
        "lowest": "",
        "highest": "",
        "target": "< 60",
        "met": "yes" if took < 60 else "no",
    }


def main() -> None:
    """Measure all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=(*NETWORKS, "language-model"), help="one row")
    parser.add_argument("--data", type=Path, help="write the figures to this data file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message="Unwrapped parameters")
    rows: dict[str, Callable[[], Line]] = {"language-model": language_model}
    for name, size in NETWORKS.items():
        rows[name] = lambda name=name, size=size: measured(name, size, arguments.repeats)
    for name, row in rows.items():
        if arguments.only in (None, name):
            line = row()
            print("{figure:<62} {median:>5} ({lowest} to {highest}), target {target}".format(**line), flush=True)
            if arguments.data:
                put(arguments.data, ("figure",), [line])


if __name__ == "__main__":
    main()
