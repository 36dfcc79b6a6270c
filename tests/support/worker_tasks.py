"""What worker processes do in tests; they import this module by its name."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfp.comparison.workers import shared_out


def work(task: Any, on_step: Callable[[], None]) -> Any:
    """Step and answer; or die, or stay for ever."""
    on_step()
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "exit":
        os._exit(3)
    if isinstance(task, Path):
        task.write_text(str(os.getpid()))
        on_step()
        threading.Event().wait()
    return task, os.getpid()


def printing(task: str, on_step: Callable[[], None]) -> str:
    """Print, as a model's own code may."""
    print(task, flush=True)
    return task


if __name__ == "__main__":
    for _ in shared_out(work, [Path(sys.argv[1])], 1, lambda: None):
        pass
