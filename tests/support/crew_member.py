"""What a worker process does in tests of a crew: it answers at once, slowly or never, and needs no torch."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

from hfp.federation.jobs.process import Message, receive, send


def serve(connection: int, _: int) -> None:
    """Get ready, or die at once if told so; then answer with the request's number and this process's."""
    parent = Connection(connection)
    if receive(parent).fields.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    send(parent, Message({"kind": "ready"}))
    with contextlib.suppress(EOFError, OSError):
        while True:
            fields = receive(parent).fields
            time.sleep(fields.get("seconds", 0))
            if "once" in fields and not Path(fields["once"]).exists():
                Path(fields["once"]).touch()
                os._exit(3)
            if fields.get("always"):
                os.kill(os.getpid(), signal.SIGKILL)
            send(parent, Message({"number": fields["number"], "process": os.getpid()}))
