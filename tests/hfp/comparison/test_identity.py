"""What a comparison's run is known by: a result is never shown for other data, threads or weights than it is of."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hfp.commands.cli import main
from hfp.comparison import identity
from hfp.comparison import runs as compare_runs
from hfp.comparison.definition import Comparison, Variant, variants_of
from hfp.comparison.identity import Identities
from hfp.comparison.runs import ComparisonFolder, distinct, missing, run_missing
from hfp.data import Dataset, Split, load_dataset, make_dataset
from hfp.data.fingerprint import fingerprint
from hfp.errors import InputError
from hfp.federation.experiment import Experiment
from hfp.methods.interface import registry

TINY = {"rounds": 1, "train_images": 60, "clients": 3, "batch_size": 8, "head_start": 1.0}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def tree(root: Path, seed: int) -> str:
    draw = np.random.default_rng(seed)
    for split, each in (("train", 6), ("test", 2)):
        for label in ("ant", "bee"):
            for index in range(each):
                path = root / split / label / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(path)
    return str(root)


def on(root: str, **over: object) -> Comparison:
    base = {**TINY, "train_images": None, "dataset": "imagefolder", "image_size": 8, "clients": 2, "data_root": root}
    return Comparison(variants_of(["fedavg"]), {**base, **over}, seeds=(0,))


def run_all(comparison: Comparison, folder: ComparisonFolder) -> list[str]:
    done: list[str] = []
    folder.describe(comparison)
    assert run_missing(comparison, folder, 1, lambda: None, lambda cell: done.append(cell.variant)) == []
    return done


def test_results_of_other_data_are_never_shown_and_stay_there(tmp_path: Path) -> None:
    first, second = on(tree(tmp_path / "first", 1)), on(tree(tmp_path / "second", 2))
    folder = ComparisonFolder(tmp_path / "out")
    experiments = [next(comparison.cells()).experiment for comparison in (first, second)]
    run_all(first, folder)
    assert folder.load(experiments[0]) is not None
    assert folder.load(experiments[1]) is None
    assert folder.outdated(experiments[1]) == "other data"
    assert run_all(second, folder) == ["fedavg"]
    kept = ComparisonFolder(tmp_path / "out")
    assert folder.load(experiments[0]) == kept.load(experiments[0])
    assert missing(first, kept) == missing(second, kept) == []


def test_the_same_data_elsewhere_is_the_same_run(tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path / "out")
    run_all(on(tree(tmp_path / "first", 1)), folder)
    moved = on(tree(tmp_path / "moved", 1))
    assert missing(moved, folder) == []


def test_data_that_changed_in_its_place_makes_another_run(tmp_path: Path) -> None:
    comparison = on(tree(tmp_path / "data", 1))
    run_all(comparison, ComparisonFolder(tmp_path / "out"))
    tree(tmp_path / "data", 2)
    assert len(missing(comparison, ComparisonFolder(tmp_path / "out"))) == 1


def test_variants_on_different_data_are_different_runs(tmp_path: Path) -> None:
    roots = [tree(tmp_path / name, seed) for name, seed in (("one", 1), ("two", 2), ("like one", 1))]
    variants = tuple(Variant(root, {"method": "fedavg", "data_root": root}) for root in roots)
    comparison = Comparison(variants, on(roots[0]).base, seeds=(0,))
    assert [cell.variant for cell in distinct(comparison, ComparisonFolder(tmp_path / "out"))] == roots[:2]


def test_a_result_without_a_record_of_its_data_is_run_again_and_said(tmp_path: Path, capsys) -> None:
    comparison, out = Comparison(variants_of(["fedavg"]), TINY, seeds=(0,)), tmp_path / "out"
    run_all(comparison, ComparisonFolder(out))
    (path,) = (out / "runs").iterdir()
    result = json.loads(path.read_text())
    del result["made_with"]
    path.unlink()
    (path.parent / "fedavg-0123456789abcdef.json").write_text(json.dumps(result))
    assert main(["compare", "--file", str(out / "comparison.json"), "--out", str(out), "--jobs", "1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 runs of 1 variants, 0 done; 1 at a time, 1 thread each" in shown
    assert "earlier results of 1 of them don't count, because they were made with no record of their data" in shown
    assert missing(comparison, ComparisonFolder(out)) == []


def test_threads_are_recorded_and_part_of_a_run(tmp_path: Path) -> None:
    comparison = Comparison(variants_of(["fedavg"]), TINY, seeds=(0,))
    experiment = next(comparison.cells()).experiment
    one, two = ComparisonFolder(tmp_path / "out"), ComparisonFolder(tmp_path / "out", threads=2)
    run_all(comparison, one)
    result = one.load(experiment)
    assert result is not None and result["made_with"]["threads"] == 1
    assert two.load(experiment) is None
    assert two.outdated(experiment) == "another number of threads"


@pytest.mark.parametrize("threads", [1, 3])
def test_runs_compute_with_the_folders_threads_whatever_this_process_has(
    tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = compare_runs.simulate
    monkeypatch.setattr(
        compare_runs,
        "simulate",
        lambda *arguments, **settings: (seen.append(torch.get_num_threads()), real(*arguments, **settings))[1],
    )
    torch.set_num_threads(2)
    try:
        run_all(Comparison(variants_of(["fedavg"]), TINY, seeds=(0,)), ComparisonFolder(tmp_path / "out", threads))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == [threads]


def test_the_number_of_threads_is_kept_with_the_comparison_and_checked(tmp_path: Path) -> None:
    assert Comparison(variants_of(["fedavg"]), TINY, threads=2).as_dict()["compare"]["threads"] == 2
    with pytest.raises(InputError, match=r"threads of a comparison must be in \[1, 1024\]; found 0"):
        Comparison(variants_of(["fedavg"]), TINY, threads=0)


def test_the_version_of_hfp_is_part_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = Comparison(variants_of(["fedavg"]), TINY, seeds=(0,))
    run_all(comparison, ComparisonFolder(tmp_path / "out"))
    monkeypatch.setattr(identity, "version", lambda name: "99.0")
    later = ComparisonFolder(tmp_path / "out")
    assert len(missing(comparison, later)) == 1
    assert later.outdated(next(comparison.cells()).experiment) == "another version of hfp"


def test_weights_are_known_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, path = Experiment.as_dict, tmp_path / "weights"
    monkeypatch.setattr(Experiment, "as_dict", lambda self: {**real(self), "weights": str(path)})
    experiment = Experiment(**TINY)
    with pytest.raises(InputError, match="weights .* can't be read: No such file"):
        Identities(1).made_with(experiment)
    found = []
    for content in (b"one", b"two", b"one"):
        path.write_bytes(content)
        found.append(Identities(1).made_with(experiment)["weights"])
    assert found[0] == found[2] != found[1]
    assert "weights" not in identity.plain(experiment)


def test_an_unexpected_failure_costs_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    real = compare_runs.simulate

    def fails(experiment: Experiment, *rest: object, **settings: object) -> object:
        if experiment.seed == 0:
            raise MemoryError("a lot of\nbytes")
        return real(experiment, *rest, **settings)

    monkeypatch.setattr(compare_runs, "simulate", fails)
    comparison, folder = Comparison(variants_of(["fedavg"]), TINY, seeds=(0, 1)), ComparisonFolder(tmp_path / "out")
    folder.describe(comparison)
    failures = run_missing(comparison, folder, 1, lambda: None, lambda cell: None)
    assert [(failure.cell.seed, failure.reason) for failure in failures] == [(0, "MemoryError: a lot of bytes")]
    assert [cell.seed for cell in missing(comparison, folder)] == [0]
    assert "Traceback" in capsys.readouterr().err


def test_what_a_worker_process_does_not_know_is_said() -> None:
    settings = {**Experiment(**TINY).as_dict(), "dataset": "of my own"}
    reason = compare_runs._work((settings, 1, None, 0), lambda: None)
    assert isinstance(reason, str)
    assert "unknown data set 'of my own'" in reason
    assert "take --jobs 1 for what is registered in Python" in reason


def changed(data: Dataset, **over: object) -> Dataset:
    values = {name: getattr(data, name) for name in ("name", "train", "test", "classes")}
    return make_dataset(**{**values, **over})  # type: ignore[arg-type]


def test_a_fingerprint_sees_every_image_label_and_class_and_no_name() -> None:
    data = load_dataset("digits", limit=50)
    images, labels = data.train.images.clone(), data.train.labels.clone()
    images[17, 0, 3, 4] += 1
    labels[5] = 9 - labels[5]
    others = {
        "a pixel": changed(data, train=Split(images, data.train.labels)),
        "a label": changed(data, train=Split(data.train.images, labels)),
        "a class": changed(data, classes=(*data.classes[:9], "nine")),
        "less test": changed(data, test=Split(data.test.images[:-1], data.test.labels[:-1])),
        "another type": changed(data, train=Split(data.train.images.float(), data.train.labels),
                                test=Split(data.test.images.float(), data.test.labels)),
    }  # fmt: skip
    found = {name: fingerprint(other) for name, other in others.items()}
    assert len({fingerprint(data), *found.values()}) == 1 + len(found)
    assert fingerprint(changed(data, name="other", notes=("said",))) == fingerprint(data)


def test_a_fingerprint_takes_any_layout_and_type() -> None:
    images = torch.rand(9, 3, 4, 4)
    spread = Split(images[:, :1].expand(-1, 3, -1, -1), torch.arange(9) % 2)
    packed = Split(spread.images.contiguous(), spread.labels)
    one, other = (make_dataset("any", split, split, ("a", "b")) for split in (spread, packed))
    assert fingerprint(one) == fingerprint(other)
    half = Split(images.bfloat16(), spread.labels)
    assert fingerprint(make_dataset("any", half, half, ("a", "b"))) != fingerprint(one)


def test_a_clients_file_is_known_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    found = []
    for name, content in (("one.json", "[[0, 1], [2, 3]]"), ("two.json", "[[0, 2], [1, 3]]"), ("three.json", None)):
        (tmp_path / name).write_text(content or "[[0, 1], [2, 3]]")
        experiment = Experiment(**{**TINY, "clients": 2, "train_images": None, "clients_file": str(tmp_path / name)})
        found.append((identity.plain(experiment), Identities(1).made_with(experiment)))
    assert found[0] == found[2]
    assert found[0][1] != found[1][1]


NETWORK = """
from torch import nn


class Network(nn.Sequential):
    def forward(self, images):
        return super().forward({scale} * images)


def make():
    return Network(nn.Conv2d(1, {width}, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear({width}, 10))
"""


def test_a_model_of_ones_own_is_known_by_its_code_and_structure(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    experiment = Experiment(**TINY, model="network_known_by_code:make")

    def found(**values: int) -> dict[str, str]:
        (tmp_path / "network_known_by_code.py").write_text(NETWORK.format(**values))
        monkeypatch.delitem(sys.modules, "network_known_by_code", raising=False)
        importlib.invalidate_caches()
        return Identities(1).made_with(experiment)["code"]

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    first = found(scale=1, width=4)
    assert found(scale=1, width=4) == first
    assert found(scale=2, width=4) != first != found(scale=1, width=6)
    assert "code" not in Identities(1).made_with(Experiment(**TINY))


def test_a_method_of_ones_own_is_known_by_its_code(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)

    def found(summary: str) -> dict[str, str]:
        (tmp_path / "method_known_by_code.py").write_text(
            "from hfp.methods import create_method, register\n\n\n"
            "@register\nclass Mine(type(create_method('fedavg'))):\n"
            f"    name, summary = 'mine-known-by-code', {summary!r}\n"
        )
        monkeypatch.delitem(sys.modules, "method_known_by_code", raising=False)
        importlib.invalidate_caches()
        importlib.import_module("method_known_by_code")
        return Identities(1).made_with(Experiment(**TINY, method="mine-known-by-code"))["code"]

    assert found("one") == found("one") != found("another")
