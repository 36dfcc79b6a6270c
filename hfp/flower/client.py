"""The ClientApp, ``hfp.flower.client:app``, which passes letters on to where torch is, and the answers back.

Flower starts a process for every message. Loading torch there would cost seconds each time, so the work is done by a
worker that a node keeps between messages (`hfp.flower.worker`). In simulation, whose processes stay, it is done here.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from hfp.errors import InputError
from hfp.federation.letter import Letter
from hfp.flower.letter import from_records, to_records
from hfp.flower.settings import problem_file, settings_from

KEPT = "kept-"

app = ClientApp()


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Say which client this node is."""
    return _pass_on("hello", message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Do a task."""
    return _pass_on("train", message, context)


@app.evaluate()
def statistics(message: Message, context: Context) -> Message:
    """Measure the global model's batch-norm statistics on the node's data."""
    return _pass_on("statistics", message, context)


def _pass_on(kind: str, message: Message, context: Context) -> Message:
    settings = settings_from(context.run_config)
    problem = problem_file(settings)
    request: dict[str, Any] = {
        "kind": kind,
        "client": _whole(context, "partition-id"),
        "clients": _whole(context, "num-partitions"),
        "config": json.dumps(dict(context.run_config), sort_keys=True),
        "problem": None if problem is None else str(problem),
    }
    letter, kept = from_records(message.content), _kept(context)
    if settings.worker and "ray" not in sys.modules and hasattr(socket, "AF_UNIX"):
        from hfp.flower import worker

        answer, keep = worker.ask(f"{context.run_id}-{context.node_id}", request, letter, kept)
    else:
        from hfp.flower import workshop

        answer, keep = workshop.answer(request, letter, kept)
    if keep is not None:
        context.state.update({KEPT + name: record for name, record in to_records(keep).items()})
    return Message(to_records(answer), reply_to=message)


def _kept(context: Context) -> Letter | None:
    records = {name.removeprefix(KEPT): record for name, record in context.state.items() if name.startswith(KEPT)}
    return from_records(RecordDict(records)) if records else None


def _whole(context: Context, name: str) -> int:
    value = context.node_config.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"start the node with --node-config 'partition-id=K num-partitions=N'; {name} is {value!r}")
    return value
