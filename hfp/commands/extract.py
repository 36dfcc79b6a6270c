"""``hfp extract``: a client's own compact model, or the global one, out of a run's folder into a file."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from hfp.commands.printing import print_json
from hfp.pruning.export import check_exporter, export_onnx
from hfp.reconstruct import IndexMap, load_pruned
from hfp.results.deployed import Deployed, example
from hfp.results.load import SavedRun, Submodel, load_run
from hfp.results.submodels import save_submodel
from hfp.training.batch_norm import has_statistics

_STATISTICS = (
    "this model has the global model's batch-norm statistics, so it may predict worse than the client's own; "
    "hfp run --save-clients keeps that, and reestimate(images) in Python takes the statistics anew"
)


def run(arguments: argparse.Namespace) -> int:
    """Load, write, export; returns 0."""
    if arguments.onnx is not None:
        check_exporter()
    saved = load_run(arguments.run, arguments.model)
    found = saved if arguments.client is None else saved.submodel(arguments.client)
    index_map = found.index_map if isinstance(found, Submodel) else IndexMap.identity(saved.model)
    save_submodel(arguments.out, found.model, index_map, saved.description, _about(saved, found))
    document: dict[str, Any] = {**_about(saved, found), "out": str(arguments.out)}
    document["load"] = _loading(arguments.out, saved)
    document["parameters"] = sum(parameter.numel() for parameter in found.model.parameters())
    if arguments.onnx is not None:
        whole = load_pruned(arguments.out, saved.model).model  # with values of every layer, which an export looks at
        deployed = Deployed(whole, found.input).eval()
        difference = export_onnx(deployed, example(found.input), arguments.onnx)
        document["onnx"] = {"path": str(arguments.onnx), "largest_difference": difference, "takes": deployed.takes}
    if isinstance(found, Submodel) and not found.trained and has_statistics(found.model):
        print(f"hfp extract: {_STATISTICS}", file=sys.stderr)
    if arguments.json:
        print_json(document)
    else:
        _show(document)
    return 0


def _about(saved: SavedRun, found: SavedRun | Submodel) -> dict[str, Any]:
    about = {name: saved.settings.get(name) for name in ("method", "dataset")}
    if isinstance(found, Submodel):
        return {**about, "client": found.client, "round": found.round, "trained": found.trained}
    return {**about, "round": len(found.history), "trained": True}


def _loading(out: Path, saved: SavedRun) -> str:
    """Return the call that loads the file; only a model that has a name is made without the caller's help."""
    return f"hfp.load_submodel({json.dumps(str(out))}{'' if saved.description.named else ', model=...'})"


def _show(document: dict[str, Any]) -> None:
    console = Console(highlight=False)
    whose = "the global model" if "client" not in document else f"client {document['client']}'s model"
    made = "as trained" if document["trained"] else "as planned, with the global model's weights"
    lines = [f"{whose}, {made} in round {document['round']}: {document['parameters']:,} parameters"]
    path = shlex.quote(document["out"])
    lines.append(f"written to {document['out']}; load it with {document['load']}, or hfp predict {path} IMAGE ...")
    if "onnx" in document:
        onnx = document["onnx"]
        lines.append(f"{onnx['path']} takes {onnx['takes']} and differs by {onnx['largest_difference']:.2g} at most")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
