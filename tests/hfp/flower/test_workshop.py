"""A client's letters are answered, whatever its own code raises."""

import json

import pytest

pytest.importorskip("flwr")

from hfp.federation import wire
from hfp.federation.letter import Letter
from hfp.flower import workshop


@pytest.mark.parametrize(
    ("code", "problem"),
    [("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"), ("def model(:", "SyntaxError: invalid")],
)
def test_a_problem_that_can_not_be_imported_is_told_to_the_server(code, problem, tmp_path):
    path = tmp_path / "problem.py"
    path.write_text(code)
    request = {"kind": "hello", "client": 0, "clients": 2, "config": json.dumps({"clients": 2}), "problem": str(path)}
    answer, kept = workshop.answer(request, Letter("{}"), None)
    assert kept is None
    kind, said = wire.failure_in(answer)
    assert (kind, said[: len(problem)]) == (wire.FAILED, problem)
