"""Fuzzes the readers of bytes from outside, and keeps what makes one fail.

    python tests/fuzz/run.py --runs 1000000                   all targets, mutations of good inputs
    python tests/fuzz/run.py --guided --runs 1000000          the same, guided by coverage (atheris, in dev, on Linux)
    python tests/fuzz/run.py --seconds 60                     as many as a minute allows
    python tests/fuzz/run.py --guided --target toml --runs 1000

A failing input is written to tests/fuzz/found/TARGET-... and read by the tests from then on. With --data FILE, the
counts of the guided run are written as CSV, together with the commit.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from mutations import mutated

FOUND = Path(__file__).with_name("found")
MEMORY = Path("/dev/shm")  # files are opened a hundred times faster there
SHARES = {"pruned-file": 2, "checkpoint": 1, "toml": 4, "round": 4}
"""Runs of a target for one of a quick one are inverse to this: what takes longer is run less often."""

MOST_MEGABYTES = 1500
"""The memory that a guided run may take: torch and the instrumented code take 800 of it, whatever is read."""

SLOWEST = 20
"""Seconds that one input may take."""

FIELDS = ("target", "executions", "undocumented_errors", "seconds", "peak_megabytes", "commit")


def main(words: list[str]) -> int:
    """Fuzz; returns 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=None, help="stop after this many executions in all")
    parser.add_argument("--seconds", type=float, default=None, help="stop after this many seconds")
    parser.add_argument("--target", action="append", help="only this target; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the mutations")
    parser.add_argument("--guided", action="store_true", help="guide the mutations by coverage, a process per target")
    parser.add_argument("--data", metavar="FILE", help="write the counts of a guided run to this CSV file")
    parser.add_argument("--atheris", metavar="TARGET", help=argparse.SUPPRESS)  # such a process
    arguments, rest = parser.parse_known_args(words)
    if arguments.atheris:
        return _guided(arguments.atheris, rest)
    return _guide_all(arguments) if arguments.guided else _mutate(arguments)


def _mutate(arguments: argparse.Namespace) -> int:
    if MEMORY.is_dir():
        tempfile.tempdir = str(MEMORY)
    import torch
    from targets import targets

    torch.set_num_threads(1)
    chosen = [targets()[name] for name in arguments.target or targets()]
    draw, begun, done, failed, taken = random.Random(arguments.seed), time.monotonic(), Counter(), Counter(), Counter()
    while True:
        for target in chosen:
            for _ in range(100 // SHARES.get(target.name, 1)):
                content = mutated(draw.choice(target.seeds), draw)
                done[target.name] += 1
                try:
                    taken[target.name] += target.run(content)
                except Exception:
                    if failed[target.name] < 20:
                        _keep(target.name, content)
                    failed[target.name] += 1
        enough = arguments.runs is not None and done.total() >= arguments.runs
        if enough or (arguments.seconds is not None and time.monotonic() - begun >= arguments.seconds):
            break
    for name, count in done.items():
        print(f"{name:12} {count:9,} executions, {taken[name]:9,} taken, {failed[name]:6,} undocumented errors")
    print(f"{done.total():,} executions in {time.monotonic() - begun:.0f} s, {failed.total():,} undocumented errors")
    return 1 if failed.total() else 0


def _guide_all(arguments: argparse.Namespace) -> int:
    """Run atheris on one target after the other, as often each, and say and write what came of it."""
    from targets import targets

    names = arguments.target or list(targets())
    each = -(-(arguments.runs or 1_000_000) // len(names))
    rows = []
    for name in names:
        rows.append(_counts(name, each, arguments.seed))
        print("{target:12} {executions:9,} executions, {undocumented_errors} undocumented errors".format(**rows[-1]))
        sys.stdout.flush()
        if arguments.data:
            _write(Path(arguments.data), rows)
    failed = sum(row["undocumented_errors"] for row in rows)
    print(f"{sum(row['executions'] for row in rows):,} executions, {failed} undocumented errors")
    return 1 if failed else 0


def _counts(name: str, runs: int, seed: int) -> dict[str, object]:
    """Run atheris on a target, again after each failure, until it was run so often or has failed twenty times."""
    done = errors = megabytes = 0
    begun = time.monotonic()
    while done < runs and errors < 20:
        limits = f"-rss_limit_mb={MOST_MEGABYTES} -timeout={SLOWEST} -runs={runs - done} -seed={seed + errors + 1}"
        words = [sys.executable, __file__, "--atheris", name, *limits.split(), "-print_final_stats=1"]
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            own = {**os.environ, "TMPDIR": folder}  # libFuzzer ends its process without cleaning up
            said = subprocess.run(words, stderr=subprocess.PIPE, text=True, errors="replace", check=False, env=own)
        executed = re.findall(r"number_of_executed_units: *(\d+)", said.stderr)
        if not executed:
            sys.exit(f"atheris did not run:\n{said.stderr[-2000:]}")
        done += int(executed[-1])
        megabytes = max([megabytes, *map(int, re.findall(r"peak_rss_mb: *(\d+)", said.stderr))])
        if said.returncode:
            errors += 1
            print(said.stderr[-3000:], file=sys.stderr)
    seconds = round(time.monotonic() - begun)
    return dict(zip(FIELDS, (name, done, errors, seconds, megabytes, _commit()), strict=True))


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _commit() -> str:
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()


def _guided(name: str, options: list[str]) -> int:
    """Hand one target to atheris, with libFuzzer's own options, as in ``-max_total_time=60``.

    Every other mutation is libFuzzer's own, and the others know of JSON, which few random bytes are.
    """
    import atheris

    with atheris.instrument_imports(include=["hfp"]):
        import torch
        from targets import targets

    torch.set_num_threads(1)
    target = targets()[name]
    corpus = Path(tempfile.mkdtemp(prefix="hfp-fuzz-corpus-"))
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def mutate(content: bytes, longest: int, seed: int) -> bytes:
        if seed % 2:
            return atheris.Mutate(content, longest)
        return mutated(content, random.Random(seed))[:longest]

    def one(content: bytes) -> None:
        try:
            target.run(content)
        except Exception:
            _keep(name, content)
            raise

    FOUND.mkdir(exist_ok=True)
    slow_ones = f"-artifact_prefix={FOUND}/{name}-"  # and those that take too much memory
    atheris.Setup([sys.argv[0], slow_ones, *options, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


def _keep(name: str, content: bytes) -> None:
    FOUND.mkdir(exist_ok=True)
    path = FOUND / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    path.write_bytes(content)
    print(f"{path}: {traceback.format_exc(limit=-3)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
