"""The page on adding things: its examples run in their order, and each does what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import hfp
from hfp.importance import describe
from hfp.importance import registry as criteria
from hfp.methods import methods
from hfp.methods.interface import registry
from hfp.reconstruct import MapError
from hfp.reconstruct.coupling.rules.registry import OPERATION_RULES

PAGE = Path(__file__).parents[2] / "examples" / "extending.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(autouse=True)
def what_the_page_registers():
    """What the page makes known is forgotten again; methods are loaded first, since each registers only once."""
    methods()
    tables = [registry._METHODS, criteria._ENTRIES, OPERATION_RULES]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


def test_the_examples_of_the_page_run_and_do_what_it_says():
    found = {"__name__": "the_page"}
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), found)
    before, after = found["result"].report.costs["macs"]
    assert 0.3 < after / before <= 0.5
    assert describe("my-fisher").needs == "data"
    assert found["run"].accuracy > 0
    assert found["run"].experiment.method == "largest-first"


def test_an_operation_without_a_rule_fixes_what_it_touches():
    @torch.library.custom_op("example::unknown_clip", mutates_args=())
    def unknown_clip(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x)

    class Clipped(torch.nn.Module):
        def forward(self, x):
            return unknown_clip(x)

    network = torch.nn.Sequential(torch.nn.Linear(8, 16), Clipped(), torch.nn.Linear(16, 4))
    with pytest.raises(MapError, match="unknown_clip is not followed"):
        hfp.prune(network, torch.randn(2, 8), hfp.Budget(ratio=0.5))
