"""A handful of the zoo's models, one a kind; a package that is not installed is left out."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import zoo
from data_files import read
from PIL import Image
from zoo_models import catalogue

ZOO = Path(zoo.__file__).with_suffix(".csv")
SOME = (
    "transformers/BertForSequenceClassification",
    "transformers/Qwen3ForCausalLM",
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
