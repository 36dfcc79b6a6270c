"""Write the figures of finished `hfp compare` runs to the data file of the page on methods.

python examples/benchmarks/compare.py runs/compare-digits --data examples/benchmarks/compare.csv
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from data_files import Line, both, put

from hfp.comparison.definition import Comparison, comparison_from
from hfp.comparison.runs import COMPARISON, ComparisonFolder
from hfp.comparison.table import Row, cells_of, gather, rows

SETTING = ("dataset", "model", "alpha", "rank", "rounds", "head_start", "seeds", "method")


def main() -> None:
    """Read the folder of a comparison and write its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `hfp compare --out` was given")
    parser.add_argument("--data", type=Path, required=True, help="the data file to write to")
    given = parser.parse_args()
    comparison = comparison_from(json.loads((given.folder / COMPARISON).read_text(encoding="utf-8")))
    folder = ComparisonFolder(given.folder)
    made = rows(comparison, gather(comparison, lambda cell: folder.load(cell.experiment)))
    put(given.data, SETTING, lines(comparison, made))
    print(f"{len(made)} lines written to {given.data}")


def lines(comparison: Comparison, made: list[Row]) -> Iterator[Line]:
    """A comparison's rows as lines of the data file."""
    of = next(comparison.cells()).experiment
    same = {"dataset": of.dataset, "model": of.model, "rounds": str(of.rounds), "head_start": f"{of.head_start:g}"}
    for row in made:
        yield {
            **same,
            "alpha": f"{row.alpha:g}",
            "rank": row.size.removeprefix("rank "),
            "seeds": str(row.seeds),
            "method": row.variant,
            **both("accuracy", row.accuracy),
            **both("difference", row.difference, "+.2f"),
            **both("own", row.own),
            **both("shared", row.shared),
            "megabytes_up": f"{row.megabytes_up:.1f}",
            "megabytes_down": f"{row.megabytes_down:.1f}",
            "training_gmacs": f"{row.gmacs:.1f}",
            "device_seconds": f"{row.seconds:.1f}",
            "peak_megabytes": f"{row.peak_megabytes:.1f}",
            "target": f"{row.target:.1f}",
            "to_target": cells_of(row)[-1],
        }


if __name__ == "__main__":
    main()
