"""How much memory does it take to prune a language model in a folder, and how much processor time?

Makes a folder of transformers with random weights, a shard at a time, and runs jobs on it, each in a process of its own
whose peak memory is noted: pruning to half of the multiply-accumulates, removing blocks, perplexity, and, beside them,
loading the model with transformers alone. With --limit the jobs of hfp may not have more memory of their own than this
share of the weights (Linux). With --data the figures are written to the page's data file.

    python examples/benchmarks/language.py --folder /tmp/language --limit 0.6 --data examples/benchmarks/language.csv
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from data_files import Line, put
from safetensors.torch import save_file

import hfp
from hfp.language import perplexity_of_folder, prune_folder, restore_folder
from hfp.language.folder import open_folder
from hfp.language.outline import without_weights

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ran", "to", "the", "red", "house"]
SHARD_BYTES = 200 * 2**20


def make(folder: Path, blocks: int, width: int) -> None:
    """Write a model of the kind of Llama with random weights in bfloat16, and a tokenizer of a few words."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=blocks,
        num_attention_heads=width // 64, num_key_value_heads=width // 256, architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )  # fmt: skip
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    shapes = {name: tensor.shape for name, tensor in without_weights(config, LlamaForCausalLM).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    shards: list[dict[str, torch.Size]] = [{}]
    for name, shape in shapes.items():
        if sum(each.numel() for each in shards[-1].values()) * 2 > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = shape
    places = {}
    for number, names in enumerate(shards, 1):
        shard = f"model-{number:05}-of-{len(shards):05}.safetensors"
        places |= dict.fromkeys(names, shard)
        save_file({name: _drawn(shape, generator) for name, shape in names.items()}, folder / shard, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    _tokenizer(folder)
    (folder / "text.txt").write_text(" ".join(WORDS * 20))


def _drawn(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    values = torch.empty(shape, dtype=torch.bfloat16).normal_(generator=generator)
    return values.mul_(0.02) if len(shape) > 1 else values.mul_(0.02).add_(1)


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(WordLevel({word: index for index, word in enumerate(["[UNK]", *sorted(set(WORDS))])}, "[UNK]"))
    own.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=own, unk_token="[UNK]").save_pretrained(folder)


def _prune(folder: Path, **asked: object) -> None:
    report = prune_folder(folder, folder.with_name("small"), shard_bytes=SHARD_BYTES, replace=True, **asked)
    print(report, file=sys.stderr)


def _load(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 2, dtype=torch.long))  # only then are all weights in memory


HALF = hfp.Budget(macs=0.5)
ALL = ("heads", "feed-forward", "hidden")
JOBS: dict[str, Callable[[Path], object]] = {
    "import torch, transformers and hfp": lambda folder: None,
    "load and run with transformers alone": _load,
    "prune heads and feed-forward to half": lambda folder: _prune(folder, budget=HALF),
    "prune these and the hidden width to half": lambda folder: _prune(folder, budget=HALF, widths=ALL),
    "remove a quarter of the blocks, chosen on a text": lambda folder: _prune(
        folder, drop_blocks=open_folder(folder).config["num_hidden_layers"] // 4, text=folder / "text.txt"
    ),
    "perplexity of 279 tokens": lambda folder: perplexity_of_folder(folder, folder / "text.txt"),
    "put the pruned weights back": lambda folder: restore_folder(
        folder.with_name("small"), folder, folder.with_name("back"), shard_bytes=SHARD_BYTES
    ),
}


def measured(name: str, folder: Path, limit: int | None) -> tuple[bool, float, float]:
    """Run a job in a process of its own: whether it ended well, its processor seconds, and GB of memory at its peak."""
    pid = os.fork()
    if pid == 0:
        words = [sys.executable, __file__, "--folder", str(folder), "--job", name]
        os.execv(sys.executable, [*words, *([] if limit is None else ["--bytes", str(limit)])])
    _, status, usage = os.wait4(pid, 0)
    return status == 0, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def main() -> None:
    """Make the folder, and measure all jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where to write; a model that is there is used")
    parser.add_argument("--only", choices=JOBS, help="one job")
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--limit", type=float, help="share of the weights that a job of hfp may have of memory")
    parser.add_argument("--data", type=Path, help="write the figures to this data file")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        if arguments.bytes:
            resource.setrlimit(resource.RLIMIT_DATA, (arguments.bytes, arguments.bytes))
        JOBS[arguments.job](arguments.folder)
        return
    full = arguments.folder / "full"
    made = not full.exists()
    if made:
        make(full, arguments.blocks, arguments.width)
    weights = open_folder(full).bytes
    limit = None if arguments.limit is None else int(arguments.limit * weights)
    for name in JOBS if arguments.only is None else (arguments.only,):
        of_hfp = name != "load and run with transformers alone"
        well, seconds, peak = measured(name, full, limit if of_hfp else None)
        line: Line = {
            "job": name,
            "weights_gb": f"{weights / 2**30:.2f}",
            "limit_gb": f"{limit / 2**30:.2f}" if limit and of_hfp else "",
            "peak_gb": f"{peak:.2f}",
            "processor_seconds": f"{seconds:.0f}",
            "ended_well": "yes" if well else "no",
        }
        print(line, flush=True)
        if arguments.data:
            put(arguments.data, ("job",), [line])
    if made:
        shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()
