"""Pure functions from a `Run` to the tables and plain values that people and machines read."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.markup import escape
from rich.table import Table

from hfp.errors import counted
from hfp.federation.records import LATE, LOST, MEGABYTE, RoundRecord, Run


def run_document(run: Run, folder: str | None) -> dict[str, Any]:
    """Make the JSON document of ``hfp run --json``."""
    return {
        "accuracy": run.accuracy,
        "f1": run.f1,
        "personal": None if run.personal is None else dataclasses.asdict(run.personal),
        "bytes_up": run.bytes_up,
        "bytes_down": run.bytes_down,
        "macs": {
            "training": run.training_macs,
            "client_forward": run.forward_macs,
            "full_forward": run.full_cost.forward_macs,
            "fedavg_training": run.full_cost.training_macs,
        },
        "parameters": {"client": run.parameters, "full": run.full_cost.parameters},
        "peak_bytes": {"client": run.peak_bytes, "full": run.full_cost.peak_bytes},
        "process_peak_bytes": run.process_peak_bytes,
        "device_peak_bytes": run.device_peak_bytes,
        "fedavg_bytes_up": run.full_cost.bytes_up,
        "fedavg_bytes_down": run.full_cost.bytes_down,
        "seconds": run.seconds,
        "device_seconds": {"run": run.device_seconds, "fedavg": run.full_cost.seconds},
        "ended": run.ended,
        "folder": folder,
        "experiment": run.experiment.as_dict(),
        "history": [record.as_dict() for record in run.history],
    }


def round_line(record: RoundRecord, rounds: int, f1: bool = False) -> str:
    """Write one round's figures in one line, with the F1 score if that is asked for."""
    return (
        f"round {record.round:>{len(str(rounds))}}  {record.phase:<6}  {_tested(record, f1)}  "
        f"up {record.bytes_up / MEGABYTE:.2f} MB  down {record.bytes_down / MEGABYTE:.2f} MB  "
        f"{record.training_macs / 1e9:.2f} GMACs{_missing(record)}{_safeguards(record)}"
    )


def _tested(record: RoundRecord, f1: bool) -> str:
    score = f"  F1 {record.f1 or 0.0:5.1f} %" if f1 else ""
    tested = f"accuracy {record.accuracy or 0.0:5.1f} %{score}  loss {record.loss or 0.0:6.3f}"
    return f"{'not tested':<{len(tested)}}" if None in (record.accuracy, record.loss) else tested


def _missing(record: RoundRecord) -> str:
    counts = {status: record.count(status) for status in (LATE, *LOST)}
    reason = next((f" (client {client.client}: {client.problem})" for client in record.clients if client.problem), "")
    return "".join(f"  {count} {status}" for status, count in counts.items() if count) + reason


def _safeguards(record: RoundRecord) -> str:
    """Say how much privacy was spent and what could not be defended, where a run has such safeguards."""
    spent, undefended = record.figures.get("epsilon"), record.figures.get("undefended")
    return ("" if spent is None else f"  epsilon {spent:.2f}") + (
        "" if undefended is None else f"  {undefended:.0%} of the model undefended"
    )


def run_table(run: Run, f1: bool) -> Table:
    """Make the closing table, with the run's costs beside what FedAvg pays in as many rounds.

    Args:
        run: the run.
        f1: whether the F1 score is shown beside the accuracy.
    """
    rounds, full = len(run.history), run.full_cost
    experiment, reached = run.experiment, f"{run.accuracy:.2f} %{f', F1 {run.f1:.2f} %' if f1 else ''}"
    table = Table(
        title=escape(f"{experiment.method} on {experiment.dataset_name}: {reached} after {counted(rounds, 'round')}"),
        title_justify="left",
        caption=_caption(run),
        caption_justify="left",
    )
    for name in ("", "this run", "FedAvg's cost", "share"):
        table.add_column(name, justify="left" if not name else "right")
    rows: tuple[tuple[str, float, float, float, str], ...] = (
        ("MB down", run.bytes_down, full.bytes_down, MEGABYTE, ",.2f"),
        ("MB up", run.bytes_up, full.bytes_up, MEGABYTE, ",.2f"),
        ("training, GMACs", run.training_macs, full.training_macs, 1e9, ",.1f"),
        ("time on the devices, s", run.device_seconds, full.seconds, 1.0, ",.1f"),
        ("one image, MMACs", run.forward_macs, full.forward_macs, 1e6, ",.2f"),
        ("memory of the largest client, MB", run.peak_bytes, full.peak_bytes, MEGABYTE, ",.1f"),
        ("parameters, thousands", run.parameters, full.parameters, 1e3, ",.1f"),
    )
    for name, here, reference, unit, form in rows:
        table.add_row(name, format(here / unit, form), format(reference / unit, form), f"{here / reference:.0%}")
    return table


def _caption(run: Run) -> str:
    down, up = run.history[-1].statistics
    parts = ["one image and parameters: the mean client's submodel"]
    if run.personal is not None:
        parts.insert(
            0,
            f"on data like a client's own: {run.personal.own:.2f} % by its own submodel, "
            f"{run.personal.shared:.2f} % by the global model",
        )
    if down:
        parts.append(
            f"MB include re-estimating batch-norm statistics once, for the final model "
            f"({down / MEGABYTE:.2f} down, {up / MEGABYTE:.3f} up)"
        )
    return "; ".join(parts)
