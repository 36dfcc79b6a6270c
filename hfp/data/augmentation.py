"""Crop and flip the images of a batch at random."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def augment(images: Tensor, generator: torch.Generator, *, padding: int = 4, flip: bool = True) -> Tensor:
    """Shift every image by up to `padding` pixels each way, black coming in, and mirror half of them.

    The draws depend only on the generator and the number of images (He et al., 2016, section 4.2).

    Args:
        images: images that are not yet normalised, `[samples, channels, height, width]`, of any dtype.
        generator: what the draws come from.
        padding: the largest shift in pixels, 4 by default.
        flip: whether images are mirrored, which they are by default.

    Returns:
        A new tensor of the same shape.
    """
    shifts, mirrored = draw_moves(len(images), generator, padding=padding, flip=flip)
    return move(images, shifts.to(images.device), mirrored.to(images.device), padding=padding)


def draw_moves(
    samples: int, generator: torch.Generator, *, padding: int = 4, flip: bool = True
) -> tuple[Tensor, Tensor]:
    """Draw the random numbers of one `augment`, on the generator's device.

    Returns:
        How far each image is shifted, int64 `[2, samples, 1]` in [0, 2 padding], and whether it is mirrored, int64
        `[samples, 1]`, 0 or 1.
    """
    where = generator.device
    shifts = torch.randint(2 * padding + 1, (2, samples, 1), generator=generator, device=where)
    return shifts, torch.randint(2 if flip else 1, (samples, 1), generator=generator, device=where)


def move(images: Tensor, shifts: Tensor, mirrored: Tensor, *, padding: int = 4) -> Tensor:
    """Shift and mirror images as `draw_moves` says; all three tensors are on one device."""
    samples, _, height, width = images.shape
    top, left = shifts
    rows = top + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left + torch.where(mirrored.bool(), columns.flip(0), columns)
    padded = functional.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    sample = torch.arange(samples, device=images.device).view(-1, 1, 1)
    moved = padded[sample, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
    # with one channel, the strides would look like those of channels-last
    return moved.clone(memory_format=torch.contiguous_format)
