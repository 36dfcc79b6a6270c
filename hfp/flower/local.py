"""Runs a SuperLink and its nodes as processes on this machine, to try things out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from hfp.errors import InputError
from hfp.flower import require_flower

QUIET: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
}
"""These keep Flower from contacting the internet, and shorten the waits of its processes for each other."""

HOST = "127.0.0.1"
CONNECTION = "local-deployment"
START = 120.0  # seconds that a SuperLink may take until it answers
STOP = 15.0  # seconds to end by itself


@dataclass
class LocalDeployment:
    """A SuperLink and nodes on loopback. At the end of a ``with`` block everything that was started is stopped.

    Args:
        folder: has the processes' logs, the keys and Flower's own files.
        secure: encrypt with TLS, and admit only nodes whose keys are registered.
        simulation: have the SuperLink simulate nodes.
        environment: further environment variables of the processes.
    """

    folder: Path
    secure: bool = False
    simulation: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the folder, and keys where `secure` needs them.

        Raises:
            InputError: Flower isn't installed.
        """
        require_flower()
        self.folder = self.folder.resolve()  # it is where the processes work, and in the paths that they are given
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._link: subprocess.Popen[bytes] | None = None
        self._started: list[subprocess.Popen[bytes]] = []
        self._environment = {
            **os.environ,
            **QUIET,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(self.home),
            **self.environment,
        }
        self.home.mkdir(exist_ok=True)
        if self.secure:
            from hfp.flower.keys import make_certificates

            make_certificates(self.folder)
        self._write_connection()

    @property
    def home(self) -> Path:
        """The folder with Flower's own files."""
        return self.folder / "flower"

    @property
    def address(self) -> str:
        """The address that the SuperLink listens at."""
        return f"{HOST}:{self.port}"

    @property
    def link(self) -> subprocess.Popen[bytes]:
        """The SuperLink's process.

        Raises:
            InputError: no SuperLink has been started.
        """
        if self._link is None:
            raise InputError("no SuperLink has been started")
        return self._link

    def start_link(self) -> None:
        """Start the SuperLink, or start it again with its earlier state.

        Raises:
            InputError: the SuperLink ends, or doesn't answer.
        """
        tls = ["--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.crt", "--ssl-keyfile", "server.key"]
        mode = [*tls, "--enable-supernode-auth"] if self.secure else ["--insecure"]
        kind = ["--simulation"] if self.simulation else []
        words = ["flower-superlink", "--host", HOST, "--port", str(self.port), "--database", "state.db"]
        self._link = self.start([*words, "--disable-runtime-dependency-installation", *mode, *kind], "superlink")
        until = time.monotonic() + START
        while not _answers(self.port):
            if self._link.poll() is not None or time.monotonic() > until:
                raise InputError(f"the SuperLink doesn't start; see {self.log('superlink')}")
            time.sleep(0.1)

    def start_node(self, name: str, config: str, key: str | None = None) -> subprocess.Popen[bytes]:
        """Start a node.

        Args:
            name: what its log is called.
            config: its ``--node-config``.
            key: its private key's file; by default the one of its name.
        """
        mode = ["--insecure"]
        if self.secure:
            mode = ["--root-certificates", "ca.crt"]
            key = name if key is None else key
            mode += ["--auth-supernode-private-key", key] if key else []
        words = ["flower-supernode", "--superlink", self.address, "--host", HOST, "--port", str(free_port())]
        process = self.start([*words, *mode, "--node-config", config], name)
        self.nodes[name] = process
        return process

    def start_nodes(self, count: int) -> None:
        """Start nodes for clients 0 to `count` - 1, and register their keys where `secure` needs that."""
        for client in range(count):
            name = f"node-{client}"
            if self.secure:
                self.register(name)
            self.start_node(name, f"partition-id={client} num-partitions={count}")

    def register(self, name: str) -> None:
        """Make a node's key and have the SuperLink admit it.

        Raises:
            InputError: the SuperLink refuses the key.
        """
        from hfp.flower.keys import make_node_key

        make_node_key(self.folder / name)
        done = self.flwr("supernode", "register", f"{self.folder / name}.pub", CONNECTION)
        if done.returncode:
            raise InputError(f"{name} can't be registered: {done.stdout.strip()[-300:]}")

    def flwr(self, *words: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """Run one of Flower's own commands. Its standard error is in the output too."""
        return subprocess.run(
            ["flwr", *words],
            env=self._environment,
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )

    def run_words(self, app: Path, config: Sequence[str], nodes: int | None) -> list[str]:
        """Return the words of the ``flwr run`` command that runs an app here."""
        words = ["flwr", "run", str(app), CONNECTION, "--stream"]
        for part in config:
            words += ["--run-config", part]
        return words if nodes is None else [*words, "--federation-config", f"num-supernodes={nodes}"]

    def start_run(self, app: Path, config: Sequence[str] = (), nodes: int | None = None) -> subprocess.Popen[bytes]:
        """Submit a run; the process shows its log until it ends."""
        return self.start(self.run_words(app, config, nodes), "run")

    def last_run_completed(self) -> bool:
        """Tell whether the run that was submitted last has completed, which ``flwr run`` itself does not say."""
        listed = self.flwr("list", CONNECTION, "--format", "json").stdout
        try:
            runs = json.loads(listed[listed.index("{") :])["runs"]
        except (ValueError, KeyError):
            return False
        newest = max(runs, key=lambda run: run["pending-at"], default=None)
        return newest is not None and newest["status"] == "finished:completed"

    def log(self, name: str) -> Path:
        """Return the file with a process's output."""
        return self.folder / f"{name}.log"

    def start(self, words: Sequence[str], name: str, *, here: bool = False) -> subprocess.Popen[bytes]:
        """Start a process in a group of its own; its output is added to a log, or shown `here`.

        Raises:
            InputError: there is no such command.
        """
        command = shutil.which(words[0], path=self._environment["PATH"])
        if command is None:
            raise InputError(f'there is no command {words[0]} beside {sys.executable}; pip install "hfp[flower]" there')
        with ExitStack() as stack:
            log: IO[bytes] | None = None if here else stack.enter_context(open(self.log(name), "ab"))
            process = subprocess.Popen(
                [command, *words[1:]],
                env=self._environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End a process and those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process in self._started:
            self._started.remove(process)

    def stop_all(self) -> None:
        """End everything that was started, and the processes that a killed SuperLink or node has left."""
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in tuple(self._started):
            self.stop(process)
        for left in self._left_behind():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(left, signal.SIGKILL)

    def _left_behind(self) -> list[int]:
        """Find the processes with this deployment's folder in their environment, where the system has /proc."""
        marker, found = f"FLWR_HOME={self.home}\0".encode(), []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if marker in entry.read_bytes() + b"\0":
                    found.append(int(entry.parent.name))
        return [process for process in found if process != os.getpid()]

    def __enter__(self) -> LocalDeployment:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()

    def _write_connection(self) -> None:
        authority = json.dumps(str(self.folder / "ca.crt"), ensure_ascii=False)  # TOML writes texts as JSON does
        how = f"root-certificates = {authority}" if self.secure else "insecure = true"
        lines = (
            "[superlink]",
            f'default = "{CONNECTION}"',
            f"[superlink.{CONNECTION}]",
            f'address = "{self.address}"',
            how,
        )
        (self.home / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def free_port() -> int:
    """Find a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False
