r"""Compute what a channel's share in the statistics of a layer or group normalisation does to the loss.

Such a norm divides by statistics over `C` channels. Removing one channel changes them for all others. To differentiate
this, give channel `c` the weight \(\gamma\) in the statistics. With \(\hat x = (x - \mu)/\sigma\), over the `P`
positions that the statistics span beside channels, \(d\mu/d\gamma_c = \sigma \sum_p \hat x_{c,p} / (CP)\) and
\(d\sigma^2/d\gamma_c = \sigma^2 \sum_p (\hat x_{c,p}^2 - 1) / (CP)\). For output gradients `g` and weights `w` it
follows that \(v_c = -\tfrac{1}{CP} \sum_p (\hat x_{c,p} \sum g w + \tfrac12 (\hat x_{c,p}^2 - 1) \sum g w \hat x)\),
where the inner sums run over everything that shares the statistics. The 1 is exactly \(\sigma^2/(\sigma^2 +
\epsilon)\). A root mean square norm has \(\mu = 0\), the mean square for \(\sigma^2\), and no first term.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
Norm = nn.LayerNorm | nn.GroupNorm | nn.RMSNorm


def norm_gate(module: Norm, x: Tensor, grad: Tensor, channel_dim: int) -> Tensor:
    """Return `v` before it is summed over positions, in the shape of `x`; `grad` is that of the norm's output.

    A layer norm over several dimensions has its `v` along each of them.
    """
    if isinstance(module, nn.GroupNorm):
        weight = None if module.weight is None else module.weight.detach()[:, None]
        split = (x.flatten(2), grad.flatten(2) if weight is None else grad.flatten(2) * weight)
        values, weighted = (value.unflatten(1, (module.num_groups, -1)) for value in split)
        return _gate(values, weighted, (2, 3), module.eps).reshape(x.shape)
    channel_dim = -1 if len(module.normalized_shape) > 1 else channel_dim
    values, weighted = x.movedim(channel_dim, -1), grad.movedim(channel_dim, -1)
    if module.weight is not None:
        weighted = weighted * module.weight.detach()
    dims = tuple(range(-len(module.normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
    return _gate(values, weighted, dims, eps, centred=not isinstance(module, nn.RMSNorm)).movedim(-1, channel_dim)


def channel_dim_of(module: Norm, x: Tensor, output: Tensor) -> int:
    """Return the dimension of a norm's channels.

    It is 1 for a group norm and channels-first kinds of layer norm, and -1 (the last) for all others.
    """
    if isinstance(module, nn.GroupNorm):
        return 1
    channels = module.normalized_shape[-1]
    if x.shape[-1] != channels:
        return 1
    plain = type(module).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward)
    if x.dim() < 4 or x.shape[1] != channels or plain or isinstance(module, nn.RMSNorm):
        return -1
    last = functional.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)
    return -1 if torch.allclose(last.detach(), output, atol=1e-3) else 1


def channel_dims_of(module: Norm, x: Tensor, output: Tensor) -> dict[str, int]:
    """Return the dimensions in which a norm may have channels, by the side under which their `v` is recorded."""
    found = {"out": channel_dim_of(module, x, output)}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        found |= {side_along(dim): dim for dim in range(-len(module.normalized_shape), -1)}
    return found


def side_along(dim: int) -> str:
    """Return the side of a norm's channels along one of its dimensions, counted from the last one, which is -1."""
    return "out" if dim == -1 else f"out {dim}"


def _gate(x: Tensor, weighted: Tensor, dims: tuple[int, ...], eps: float, centred: bool = True) -> Tensor:
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    if not centred:
        variance, mean = x.square().mean(dims, keepdim=True), torch.zeros_like(mean)
    normal = (x - mean) * (variance + eps).rsqrt()
    shift, stretch = weighted.sum(dims, keepdim=True), (weighted * normal).sum(dims, keepdim=True)
    members = normal.numel() // max(1, mean.numel())
    shift = shift if centred else torch.zeros_like(shift)
    return (normal * shift + (normal.square() - variance / (variance + eps)) * stretch / 2) / -members
