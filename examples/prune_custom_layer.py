"""Prune a network of your own, with layers that no library knows.

Nothing has to be registered: channels are followed through the operations of the forward pass, whatever the layers are
called. Here they pass through bare parameters, an einsum, a gate over two halves and a reshape into heads, and one
layer picks its largest channels, which can't be pruned exactly and is therefore left alone, with the reason.

    python examples/prune_custom_layer.py
"""

from __future__ import annotations

import torch
from rich.console import Console
from torch import Tensor, nn

import hfp


class GatedMixer(nn.Module):
    """Channels weighted by bare parameters, mixed by an einsum and gated by a second half."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels) + 0.5)
        self.mix = nn.Parameter(torch.randn(channels, 2 * hidden) * channels**-0.5)
        self.out = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[batch, tokens, channels]` to the same."""
        values, gate = torch.einsum("btc,ch->bth", tokens * self.scale, self.mix).chunk(2, dim=-1)
        return tokens + self.out(values * gate.sigmoid())


class Heads(nn.Module):
    """Linear attention in heads; the code states their number and size."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, channels // heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[batch, tokens, channels]` to the same."""
        batch, count, _ = tokens.shape
        q, k, v = self.qkv(tokens).reshape(batch, count, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        mixed = q.sigmoid() @ (k.sigmoid().transpose(-1, -2) @ v) / count
        return tokens + self.out(mixed.transpose(1, 2).reshape(batch, count, self.heads * self.size))


class Largest(nn.Module):
    """Keeps the four largest channels: which ones depends on all of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.choose = nn.Linear(channels, 16)
        self.head = nn.Linear(4, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[batch, tokens, channels]` to `[batch, 10]`."""
        return self.head(self.choose(tokens).mean(dim=1).topk(4).values)


def network() -> nn.Module:
    """The network: `[batch, 16, 32]` to `[batch, 10]`."""
    return nn.Sequential(nn.Linear(32, 48), GatedMixer(48, 64), Heads(48, 6), Largest(48))


def main() -> None:
    """Prune, show, compare."""
    torch.manual_seed(0)
    model, tokens = network().eval(), torch.randn(2, 16, 32)
    result = hfp.prune(model, tokens, hfp.Budget(ratio=0.5))
    Console().print(result.report.shown())
    print(result.index_map)
    before, after = result.report.costs["macs"]
    print(f"{after / before:.0%} of the multiply-accumulates are left; output {tuple(result.model(tokens).shape)}")


if __name__ == "__main__":
    main()
