"""Name full models in a file, so that its reader need not bring them. They are timm's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from hfp.reconstruct.errors import MapError
from hfp.reconstruct.files.watch import Watch
from hfp.reconstruct.models.attributes import is_plain

ARGUMENTS = frozenset(
    {
        *("num_classes", "in_chans", "img_size", "global_pool", "output_stride", "patch_size", "window_size"),
        *("act_layer", "norm_layer", "drop_rate", "drop_path_rate", "drop_block_rate"),
        *("pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
    }
)
_PIXELS_PER_BYTE = 4  # sizes of images grow tables of positions, some of them in steps of Python
_MOST_BYTES = 64 * 2**20  # that a model may make on other devices than meta all the same
_MOST = 100_000  # of any size; larger ones could ask for absurd amounts of memory


@dataclass(frozen=True)
class TimmModel:
    """A timm model by registered name, with constructor arguments that cannot load weights, files or code.

    Args:
        name: a registered name (`timm.list_models()`), with or without the tag of its weights.
        arguments: plain values for some of `ARGUMENTS`, with sizes up to 100,000; none by default.

    Raises:
        MapError: the name is unknown, or an argument is not allowed.

    >>> from hfp.reconstruct import TimmModel
    >>> TimmModel("resnet10t", {"num_classes": 10}).create("meta").num_classes
    10
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import timm

        if not timm.is_model(self.name):  # also refuses "hf-hub:..." and "local-dir:...", which read configurations
            raise MapError(f"timm has no model {self.name!r} (timm {timm.__version__})")
        for key, value in self.arguments.items():
            if key not in ARGUMENTS:
                raise MapError(
                    f"argument {key!r} of {self.name} can't be kept in a file (known: {', '.join(sorted(ARGUMENTS))}); "
                    "save without a timm model and bring the skeleton when loading"
                )
            if not is_plain(value) or not _small(value):
                raise MapError(f"argument {key!r} of {self.name} must be a plain value up to {_MOST}, not {value!r}")
        object.__setattr__(self, "arguments", MappingProxyType(dict(self.arguments)))

    def outline(self, file_bytes: int) -> tuple[nn.Module, int]:
        """The full model on the meta device, for a file of so many bytes, and how many bytes the real one would take.

        Raises:
            MapError: timm rejects the arguments, or making the model would take long, or needs memory even so.
        """
        for name in ("img_size", "patch_size", "window_size"):
            sides = self.arguments.get(name, 0)
            longest = max(sides, default=0) if isinstance(sides, list | tuple) else sides or 0
            if type(longest) not in (int, float) or longest**2 > _PIXELS_PER_BYTE * file_bytes:
                raise MapError(
                    f"argument {name!r} of {self.name} is {sides!r}, which is too large for a file of {file_bytes:,} "
                    "bytes; make the full model yourself and give it as `skeleton`"
                )
        with Watch(most_bytes=_MOST_BYTES) as watch:
            return self.create("meta"), watch.made

    def create(self, device: str = "cpu") -> nn.Module:
        """Make the full model with random weights, or with none on the meta device.

        Raises:
            MapError: timm rejects the arguments.
        """
        import timm

        try:
            with torch.device(device):
                return timm.create_model(self.name, pretrained=False, **self.arguments)
        except Exception as error:
            raise MapError(f"timm can't create {self.name} with {dict(self.arguments)}: {error}") from error


def _small(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_small, value))
    return not isinstance(value, int | float) or abs(value) <= _MOST
