"""Loads timm's pretrained weights, or says in one line why they can't be loaded."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
from torch import nn

from hfp.errors import InputError, first_line

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_FILES = ("model.safetensors", "pytorch_model.bin")


def pretrained_model(name: str, **arguments: Any) -> nn.Module:
    """Make a timm model with its pretrained weights, which are downloaded unless they are on this machine.

    With another number of classes than usual the classifier has random weights, and with another number of channels
    timm adapts the first layer.

    Raises:
        InputError: timm has no weights for it, or they can't be downloaded.
    """
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.has_weights:
        raise InputError(f"timm has no pretrained weights of {name}; give --weights FILE, or start from random ones")
    if known.hf_hub_id and not _cached(known.hf_hub_id) and not _resolves():
        raise _unreachable(name, known.hf_hub_id, "this machine does not reach huggingface.co")
    try:
        with _quiet():
            return timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:
        raise _unreachable(name, str(known.hf_hub_id or known.url), first_line(error)) from error


def _unreachable(name: str, source: str, reason: str) -> InputError:
    from huggingface_hub.constants import HF_HUB_CACHE

    return InputError(
        f"the pretrained weights of {name} can't be downloaded ({reason.rstrip('.')}); on a machine that can, run "
        f"`hf download {source}` and copy its cache to {HF_HUB_CACHE}, or give the file with --weights FILE"
    )


def _cached(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in _FILES)


def _resolves() -> bool:
    """Tell whether a download is worth trying; the client itself would try again for most of a minute."""
    if os.environ.get("HF_ENDPOINT") or any(os.environ.get(p) or os.environ.get(p.upper()) for p in _PROXIES):
        return True
    try:
        socket.getaddrinfo("huggingface.co", 443)
    except OSError:
        return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the client from reporting every attempt, while inside."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm", "httpx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
