"""Fuzzes the readers of bytes from outside, and keeps what makes one fail.

    python tests/fuzz/run.py --runs 1000000          all targets, mutations of good inputs
    python tests/fuzz/run.py --seconds 60            as many as a minute allows
    python tests/fuzz/run.py --atheris toml          one target, guided by coverage (atheris, in dev, on Linux)

A failing input is written to tests/fuzz/found/TARGET-DIGEST and read by the tests from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

FOUND = Path(__file__).with_name("found")
SHARES = {"pruned-file": 4, "checkpoint": 4, "toml": 1, "plan": 4}
"""Runs of a target for one of a quick one are inverse to this: what takes longer is run less often."""


def main(words: list[str]) -> int:
    """Fuzz; returns 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=None, help="stop after this many executions in all")
    parser.add_argument("--seconds", type=float, default=None, help="stop after this many seconds")
    parser.add_argument("--target", action="append", help="only this target; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the mutations")
    parser.add_argument("--atheris", metavar="TARGET", help="guide the mutations of one target by coverage")
    arguments, rest = parser.parse_known_args(words)
    if arguments.atheris:
        return _guided(arguments.atheris, rest)
    return _mutate(arguments)


def _mutate(arguments: argparse.Namespace) -> int:
    import torch
    from mutations import mutated
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


def _guided(name: str, options: list[str]) -> int:
    """Hand one target to atheris, with libFuzzer's own options, as in ``-max_total_time=60``."""
    import atheris

    with atheris.instrument_imports(include=["hfp"]):
        from targets import targets

    target = targets()[name]
    corpus = Path(__file__).with_name("corpus") / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def one(content: bytes) -> None:
        try:
            target.run(content)
        except Exception:
            _keep(name, content)
            raise

    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()
    return 0


def _keep(name: str, content: bytes) -> None:
    FOUND.mkdir(exist_ok=True)
    path = FOUND / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    path.write_bytes(content)
    print(f"{path}: {traceback.format_exc(limit=-3)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
