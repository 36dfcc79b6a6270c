"""Small networks as users write them: recurrence, causal attention, computed weights, outputs of own types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Answer:
    logits: Tensor
    features: Tensor


class Typed(nn.Module):
    """Returns a dataclass, as most libraries of transformers do."""

    answer: Any = Answer

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last, self.head = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        features = self.last(self.body(x).relu()).relu()
        return self.answer(self.head(features), features)


class Plain:
    __slots__ = ("features", "logits")

    def __init__(self, logits: Tensor, features: Tensor) -> None:
        self.logits, self.features = logits, features


class Slotted(Typed):
    """Returns an object of a class of its own."""

    answer = Plain


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Causal(nn.Module):
    """A decoder block: causal attention with fewer key heads, rotated queries, gated feed-forward, tied embeddings."""

    def __init__(self, width: int = 16, heads: int = 4, key_heads: int = 2) -> None:
        super().__init__()
        self.heads, self.key_heads, self.size = heads, key_heads, width // heads
        self.embed = nn.Embedding(20, width)
        self.query, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.key, self.value = (nn.Linear(width, key_heads * self.size, bias=False) for _ in range(2))
        self.gate, self.up = nn.Linear(width, 24, bias=False), nn.Linear(width, 24, bias=False)
        self.down, self.norms = nn.Linear(24, width, bias=False), nn.ModuleList(RMSNorm(width) for _ in range(2))
        self.head = nn.Linear(width, 20, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("speed", 1 / 100 ** torch.linspace(0, 1, self.size // 2), persistent=False)

    def rotated(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * self.speed
        angle = torch.cat([angle, angle], -1)
        first, second = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-second, first], -1) * angle.sin()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        batch, length, _ = x.shape
        y = self.norms[0](x)
        query = self.rotated(self.query(y).view(batch, length, self.heads, self.size).transpose(1, 2))
        key = self.rotated(self.key(y).view(batch, length, self.key_heads, self.size).transpose(1, 2))
        value = self.value(y).view(batch, length, self.key_heads, self.size).transpose(1, 2)
        key, value = (t.repeat_interleave(self.heads // self.key_heads, 1) for t in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        y = self.norms[1](x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))


class Recurrent(nn.Module):
    """An embedding, two recurrent layers and a classifier."""

    def __init__(self, kind: type[nn.RNNBase] = nn.GRU, **options: Any) -> None:
        super().__init__()
        self.embed, self.recur = nn.Embedding(20, 12), kind(12, 12, 2, batch_first=True, **options)
        width = options.get("proj_size", 12) * (2 if options.get("bidirectional") else 1)
        self.mix, self.head = nn.Linear(width, 10), nn.Linear(10, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.mix(self.recur(self.embed(tokens))[0][:, -1]).relu())


class Computed(nn.Module):
    """Convolutions whose weights are computed from others before every call."""

    def __init__(self, computed: Any) -> None:
        super().__init__()
        self.a, self.b, self.head = computed(nn.Conv1d(3, 8, 3)), computed(nn.Conv1d(8, 8, 3)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu().mean(-1))


class Diffusion(nn.Module):
    """Group norm, scale and shift from a step's embedding, a skip concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.shift = nn.Linear(4, 12), nn.Linear(12, 32)
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.first, self.second = nn.GroupNorm(4, 16), nn.GroupNorm(4, 16)
        self.d, self.out = nn.Conv2d(32, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        scale, shift = self.shift(F.silu(self.time(step)))[:, :, None, None].chunk(2, 1)
        kept = self.a(x)
        y = self.second(self.b(F.silu(self.first(kept)))) * (1 + scale) + shift
        return self.out(F.silu(self.d(torch.cat([kept + self.c(F.silu(y)), kept], 1))))


class Generator(nn.Module):
    """Transposed convolutions, one of them grouped, one depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.ConvTranspose2d(3, 16, 2, 2), nn.ConvTranspose2d(16, 8, 4, 2, 1, groups=2)
        self.c, self.out = nn.ConvTranspose2d(8, 8, 3, groups=8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.c(self.b(self.a(x).relu()).relu()).relu())


class Bare(nn.Module):
    """Weights without layers, multiplied by einsum and `F.linear`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 12)), nn.Parameter(torch.randn(10, 12))
        self.head = nn.Parameter(torch.randn(3, 10))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(torch.einsum("bi,io->bo", x, self.a).relu(), self.b).relu(), self.head)


class Bag(nn.Module):
    """Bags of tokens compared with prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.prototypes = (
            nn.EmbeddingBag(20, 12),
            nn.Linear(12, 8),
            nn.Parameter(torch.randn(3, 8)),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cdist(self.mix(self.embed(tokens)).relu(), self.prototypes)


class Auxiliary(nn.Module):
    """A second head that only runs in training, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3), nn.Linear(12, 3)
        self.helper, self.helper_head, self.spare = nn.Conv2d(12, 6, 1), nn.Linear(6, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x).relu()
        logits = self.head(self.b(y).relu().mean((2, 3)))
        return (logits, self.helper_head(self.helper(y).relu().mean((2, 3)))) if self.training else logits


class EncoderDecoder(nn.Module):
    """PyTorch's own transformer, which checks sizes far above the layers that have them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(8, 2, 1, 1, 12, batch_first=True)
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.body(self.embed(source), self.embed(target)))


class Table(nn.Module):
    """Biases by relative position, as many as heads."""

    def __init__(self, length: int, heads: int) -> None:
        super().__init__()
        self.heads, self.mix = heads, nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, heads))
        place = torch.arange(length)
        self.register_buffer("places", (place[:, None] - place).view(-1, 1) / length, persistent=False)

    def biases(self, length: int) -> Tensor:
        return self.mix(self.places).view(-1, self.heads).view(length, length, self.heads).permute(2, 0, 1)


class Relative(nn.Module):
    """Attention that calls a method of a part of it, so that no module runs where the part's size is read."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = 4, 4
        self.embed, self.qkv, self.out = nn.Linear(3, 16), nn.Linear(16, 48), nn.Linear(16, 3)
        self.table = Table(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(self.embed(x).relu()).view(batch, length, 3, self.heads, self.size)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        weights = (query @ key.transpose(-1, -2) * 0.5 + self.table.biases(length)).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).flatten(2))


TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
USER_NETWORKS: dict[str, tuple[Any, Any]] = {
    "dataclass": (Typed, torch.randn(4, 6)),
    "slots": (Slotted, torch.randn(4, 6)),
    "causal": (Causal, TOKENS),
    "gru": (lambda: Recurrent(bidirectional=True), TOKENS),
    "lstm": (lambda: Recurrent(nn.LSTM, proj_size=6), TOKENS),
    "weight norm": (lambda: Computed(nn.utils.parametrizations.weight_norm), torch.randn(2, 3, 9)),
    "spectral norm": (lambda: Computed(nn.utils.parametrizations.spectral_norm), torch.randn(2, 3, 9)),
    "diffusion": (Diffusion, (torch.randn(2, 3, 6, 6), torch.rand(2, 4))),
    "generator": (Generator, torch.randn(2, 3, 4, 4)),
    "bare": (Bare, torch.randn(4, 6)),
    "bag": (Bag, TOKENS),
    "auxiliary": (Auxiliary, torch.randn(2, 3, 7, 7)),
    "relative": (Relative, torch.randn(2, 5, 3)),
    "transformer": (EncoderDecoder, (torch.randn(2, 3, 3), torch.randn(2, 4, 3))),
}
"""Name -> (constructor, example inputs)."""
