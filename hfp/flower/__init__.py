"""hfp's federated methods on Flower: a ServerApp and a ClientApp around the method objects that `hfp run` runs.

An app's pyproject.toml names ``hfp.flower.server:app`` and ``hfp.flower.client:app``; `examples/flower/` is one.

Read `server` first, the course of a run. `fleet` gives tasks to the clients, `nodes` knows which nodes are there,
`conversation` sends one message to each of several clients, and `post` sends and receives. `hfp.federation.wire` writes
what a message says, and `letter` turns it into Flower's records. On a node, `client` passes letters on to the `worker`,
where `workshop` answers them. `local` starts a deployment on this machine to try things out, with certificates from
`keys`.

Only this package imports Flower, which ``pip install "hfp[flower]"`` installs (``hfp[flower-sim]`` with its
simulation), on Python 3.11 or newer.
"""

from __future__ import annotations

import importlib.util
import sys


def require_flower() -> None:
    """Refuse to go on without Flower.

    Raises:
        InputError: this Python is too old for Flower, or Flower isn't installed.
    """
    from hfp.errors import InputError

    if sys.version_info < (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        raise InputError(f"Flower needs Python 3.11 or newer; this is {found}")
    if importlib.util.find_spec("flwr") is None:
        raise InputError('Flower is not installed; pip install "hfp[flower]", or "hfp[flower-sim]" to simulate too')
