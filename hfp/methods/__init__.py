"""Federated methods, one a file. A method is loaded, and torch with it, when it is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfp.lazy import lazily

if TYPE_CHECKING:
    from hfp.methods.interface.base import Collector, Method
    from hfp.methods.interface.client_context import ClientContext
    from hfp.methods.interface.registry import create_method, method_names, methods, register
    from hfp.methods.interface.values import Client, MethodContext, Reply, ServerState, State, Task, TrainedPart, Update

__all__ = [
    "Client",
    "Collector",
    "TrainedPart",
    "ClientContext",
    "Method",
    "Reply",
    "ServerState",
    "MethodContext",
    "State",
    "Task",
    "Update",
    "create_method",
    "method_names",
    "methods",
    "register",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "hfp.methods.interface.base": "Collector Method",
        "hfp.methods.interface.client_context": "ClientContext",
        "hfp.methods.interface.registry": "create_method method_names methods register",
        "hfp.methods.interface.values": ("Client MethodContext Reply ServerState State Task TrainedPart Update"),
    },
)
