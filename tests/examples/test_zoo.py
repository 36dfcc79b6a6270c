"""A handful of the zoo's models, one a kind; a package that is not installed is left out."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import zoo
import zoo_criteria
from data_files import read
from PIL import Image
from zoo_models import catalogue

ZOO = Path(zoo.__file__).with_suffix(".csv")
SOME = (
    "transformers/BertForSequenceClassification",
    "transformers/Qwen3ForCausalLM",
    "transformers/FSMTForConditionalGeneration",  # checks widths between its modules
    "transformers/T5ForConditionalGeneration",
    "diffusers/UNet2DConditionModel",
    "segmentation-models-pytorch/Linknet",
    "ultralytics/yolov8n",
)


@pytest.fixture(autouse=True)
def _pictures_are_opened_as_before(monkeypatch):
    """One of the packages replaces Pillow's `open` when it is imported."""
    monkeypatch.setattr(Image, "open", Image.open)


@pytest.mark.filterwarnings("ignore")  # of the packages themselves
@pytest.mark.parametrize("name", SOME)
def test_a_model_of_the_zoo_is_pruned_saved_reloaded_and_trained(name):
    package, _, model = name.partition("/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(package.replace("-", "_"), exc_type=ImportError)
    row = zoo.examine(zoo.Row(package, model, ""), catalogue()[name])
    assert row.outcome == "pass"
    assert row.macs_removed >= 0.5


def test_the_page_is_of_models_that_are_in_the_zoo():
    names = set(catalogue())
    assert {f"{line['package']}/{line['model']}" for line in read(ZOO)} <= names
    assert len(names) >= 150


def test_a_model_that_computes_something_else_is_noticed():
    case = zoo.seeded(catalogue()["torchvision/squeezenet1_1"])
    result = zoo.hfp.prune(case.model, case.inputs, zoo.hfp.Budget(macs=0.5))
    assert zoo.check_masked(case, result) < 1e-12
    with zoo.torch.no_grad():
        next(result.model.parameters()).mul_(1.01)
    with pytest.raises(zoo.Failure, match="differs from the masked full model"):
        zoo.check_masked(case, result)


@pytest.mark.filterwarnings("ignore")  # of the packages themselves
def test_every_criterion_scores_a_language_model_and_one_of_them_prunes_it():
    pytest.importorskip("transformers", exc_type=ImportError)
    name = "transformers/LlamaForCausalLM"
    rows = {row.criterion: row for row in zoo_criteria.examined(name, catalogue()[name], "")}
    assert rows.keys() == {*zoo_criteria.CRITERIA, "budget"}
    assert {row.outcome for row in rows.values()} == {"scores", "pass"}
    assert all(row.scored == row.groups > 0 for key, row in rows.items() if key != "budget")


def test_what_runs_criteria_draws_every_kind_of_model_of_every_package():
    kinds = {(name.partition("/")[0], zoo_criteria.kind_of(name, make)) for name, make in catalogue().items()}
    drawn = zoo_criteria.drawn(60)
    assert {(name.partition("/")[0], zoo_criteria.kind_of(name, make)) for name, make in drawn} == kinds
    assert [name for name, _ in drawn] == [name for name, _ in zoo_criteria.drawn(60)]


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("layer '0' can't; put its group into ignored_layers", "refused"),
        ("layer 'other' can't; put its group into ignored_layers", "failed: names no layer"),
        ("layer '0' can't", "failed: no way out"),
    ],
)
def test_a_refusal_that_does_not_help_counts_as_a_failure(text, outcome):
    model = zoo.torch.nn.Sequential(zoo.torch.nn.Linear(2, 2))
    assert zoo_criteria._refusal(zoo_criteria.CriterionError(text), model).startswith(outcome)


def test_scores_that_are_not_finite_count_as_a_failure():
    model, x = zoo.torch.nn.Sequential(zoo.torch.nn.Linear(2, 3), zoo.torch.nn.Linear(3, 2)), zoo.torch.randn(2, 2)
    coupling, scored = zoo.Coupling.trace(model, x), []
    outcome = zoo_criteria._scores(lambda group: zoo.torch.full((3,), float("nan")), model, coupling, scored)
    assert outcome == "failed: the scores of 0 are not finite" and not scored
    assert zoo_criteria._scores(lambda group: zoo.torch.ones(4), model, coupling, scored).startswith("failed: [4]")


def test_a_stage_without_a_result_keeps_what_the_others_found(monkeypatch):
    def endless(work):
        while True:
            pass

    monkeypatch.setattr(zoo, "onnx_outcome", endless)
    monkeypatch.setattr(zoo, "ONNX_SECONDS", 1)
    monkeypatch.setattr(zoo, "plain_outcome", lambda work: os._exit(3))
    row = zoo.in_process(zoo.Row("torchvision", "squeezenet1_1", ""), catalogue()["torchvision/squeezenet1_1"], 120)
    assert (row.outcome, row.onnx, row.plain) == ("pass", "no result in 1 s", "the process ended with 3")


def test_only_models_whose_original_exports_count_for_onnx():
    model = {"package": "p", "outcome": "pass", "plain": "", "commit": "c"}
    lines = [{**model, "onnx": onnx} for onnx in ("pass", "another shape", zoo.NO_ORIGINAL, zoo.NO_COMPACT, "")]
    found = list(zoo.totals(lines))[-1]
    assert (found["package"], found["models"], found["onnx_run"], found["onnx_passed"]) == ("all", "5", "2", "1")
