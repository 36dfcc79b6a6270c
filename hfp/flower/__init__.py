"""hfp's federated methods on Flower: a ServerApp and a ClientApp around the method objects that `hfp run` runs.

An app's pyproject.toml names ``hfp.flower.server:app`` and ``hfp.flower.client:app``; `examples/flower/` is one. Only
this package knows Flower, which ``pip install "hfp[flower]"`` brings (``hfp[flower-sim]`` with its simulation), on
Python 3.11 or newer.
"""

from __future__ import annotations

import importlib.util
import sys


def require_flower() -> None:
    """Refuse to go on without Flower.

    Raises:
        InputError: this Python is too old for it, or it isn't installed.
    """
    from hfp.errors import InputError

    if sys.version_info < (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        raise InputError(f"Flower needs Python 3.11 or newer; this is {found}")
    if importlib.util.find_spec("flwr") is None:
        raise InputError('Flower is not installed; pip install "hfp[flower]", or "hfp[flower-sim]" to simulate too')
