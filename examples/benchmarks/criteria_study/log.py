"""Results as lines of JSON, so that a run can be stopped at any time and goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Log:
    """The results of one network and seed, read first so that nothing runs twice."""

    def __init__(self, file: Path, network: str, seed: int) -> None:
        self.file, self.key = file, {"trained": network, "seed": seed}
        self.rows = [row for row in read(file) if row["trained"] == network and row["seed"] == seed]

    def wants(self, **what: Any) -> bool:
        """Whether there is no such result yet."""
        return not any(matches(row, what) for row in self.rows)

    def add(self, **result: Any) -> None:
        """Write one result at once."""
        row = {**self.key, **result}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        self.rows.append(row)
        print(json.dumps(row), flush=True)


def read(file: Path) -> list[Row]:
    """All results in a file, none where it doesn't exist; a line cut short by a stop is left out."""
    if not file.exists():
        return []
    lines = file.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def matches(row: Row, what: Row) -> bool:
    """Whether a result is one of these."""
    return all(row.get(key) == value for key, value in what.items())


def values(rows: list[Row], key: str, **what: Any) -> dict[int, float]:
    """One number of all results that match, by seed."""
    return {row["seed"]: row[key] for row in rows if key in row and matches(row, what)}
