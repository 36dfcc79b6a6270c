"""Small language models in folders of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WORDS = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "red"]


def llama(seed: int = 0, **changed: Any) -> Any:
    """A model of the kind of Llama with random weights."""
    return decoder("LlamaForCausalLM", seed, **changed)


def decoder(name: str, seed: int = 0, **changed: Any) -> Any:
    """A model of a class of transformers with random weights, which are large enough that every part matters."""
    import transformers

    kind = getattr(transformers, name)
    own = kind.config_class  # some compute the size of heads
    sizes = {key: value for key, value in SIZES.items() if not isinstance(getattr(own, key, None), property)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(own(**{**sizes, **changed})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return model


def saved(model: Any, folder: Path, shard_bytes: int = 20_000) -> Path:
    """Write a model to a folder of several shards."""
    model.save_pretrained(folder, max_shard_size=shard_bytes)
    return folder


def with_tokenizer(folder: Path) -> Path:
    """Put a tokenizer of whole words into a folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    own.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=own, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    return folder


def sentences(folder: Path, count: int = 30) -> Path:
    """Write a text of sentences of the tokenizer's words."""
    path = folder / "text.txt"
    path.write_text("\n".join("the cat sat on a mat and the red dog ran to the house" for _ in range(count)))
    return path


def equal_states(one: Any, other: Any) -> bool:
    """Whether two states hold the same names and values."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def logits(model: Any, seed: int = 1) -> torch.Tensor:
    """What a model says of two sequences of made-up tokens."""
    words = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(input_ids=words).logits


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in the shards of a folder."""
    found = {}
    for shard in sorted(folder.glob("model*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found
