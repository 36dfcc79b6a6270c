"""`hfp prune hf:FOLDER` and `hfp perplexity` from the command line."""

from __future__ import annotations

import json

import pytest
from commands import refused

pytest.importorskip("transformers")

from language_models import llama, saved, sentences, with_tokenizer

import hfp
from hfp.commands.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    found = tmp_path_factory.mktemp("models")
    with_tokenizer(saved(llama(), found / "full"))
    sentences(found)
    return found


def test_a_folder_is_pruned_and_the_report_printed(place, tmp_path, capsys):
    words = ["prune", f"hf:{place / 'full'}", "--macs", "0.6", "--out", str(tmp_path / "small")]
    assert main([*words, "--text", str(place / "text.txt"), "--window", "16"]) == 0
    text = capsys.readouterr().out
    assert "transformers reads the folder by itself" in text
    assert "perplexity: " in text
    assert main([*words, "--force", "--json", "--widths", "feed-forward", "--drop-blocks", "1,"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["removed_blocks"] == [1]
    assert [width["kind"] for width in report["widths"]] == ["feed-forward"]
    assert len(hfp.from_pretrained(tmp_path / "small").model.model.layers) == 1


def test_inspect_tells_again_how_a_folder_was_pruned(place, tmp_path, capsys):
    words = ["prune", f"hf:{place / 'full'}", "--macs", "0.8", "--out", str(tmp_path / "small"), "--drop-blocks", "1"]
    assert main([*words, "--text", str(place / "text.txt"), "--window", "16", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert main(["inspect", str(tmp_path / "small"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert "hfp" in again.pop("libraries")
    assert again == report
    assert main(["inspect", str(tmp_path / "small")]) == 0
    text = capsys.readouterr().out
    assert "Pruned a LlamaForCausalLM to macs=0.8 by l2" in text
    assert any(line.startswith("perplexity: ") for line in text.splitlines())
    assert "\\n" not in text
    assert "--html is not for" in refused(capsys, "inspect", str(tmp_path / "small"), "--html", "page.html")
    record = tmp_path / "small" / "hfp_prune.json"
    damaged = json.loads(record.read_text())
    del damaged["report"]["costs"]["macs"][0]
    record.write_text(json.dumps(damaged))
    assert "is damaged" in refused(capsys, "inspect", str(tmp_path / "small"))


def test_inspect_says_that_a_language_model_was_not_pruned(place, capsys):
    line = refused(capsys, "inspect", str(place / "full"))
    assert f"{place / 'full'} holds a language model of transformers that hfp did not prune; prune it with" in line


def test_perplexity_is_printed(place, capsys):
    words = ["perplexity", str(place / "full"), str(place / "text.txt")]
    assert main(words) == 0
    assert "perplexity " in capsys.readouterr().out
    assert main([*words, "--json", "--window", "8"]) == 0
    assert json.loads(capsys.readouterr().out)["windows"] == 30 * 14 // 8 + 1
    assert "more than the 64" in refused(capsys, *words, "--window", "100")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of --macs"),
        (["--macs", "0.5", "--data", "digits"], "--data does not apply to hf:FOLDER"),
        (["--latency", "0.5"], "--latency does not apply"),
        (["--macs", "0.5", "--widths", "heads", "--widths", "heads"], "--widths heads is given twice; give it once"),
        (["--macs", "0.5", "--ranking", "measured"], "takes uniform, layer, global"),
        (["--macs", "1.5"], "at most 1, not 1.5"),
        (["--drop-blocks", "1"], "measures on a text which blocks go"),
        (["--drop-blocks", "one"], "is a number of blocks, or indices"),
        (["--drop-blocks", "1,1"], "lists block 1 twice; list each once"),
        (["--drop-blocks", "1,", "--tolerance", "0.1"], "--tolerance is for a limit"),
        (["--macs", "0.5", "--window", "8"], "--window is for --text"),
        (["--macs", "0.5", "--importance", "l22"], "did you mean"),
    ],
)
def test_wrong_words_are_one_line(place, tmp_path, capsys, words, message):
    assert message in refused(capsys, "prune", f"hf:{place / 'full'}", "--out", str(tmp_path / "small"), *words)


def test_a_folder_that_is_not_there_and_options_of_folders_with_images_are_one_line(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out"), "--macs", "0.5"]
    assert "there is no folder" in refused(capsys, "prune", f"hf:{tmp_path / 'none'}", *out)
    assert "there is no folder ~nobody-of-this-name/model" in refused(
        capsys, "prune", "hf:~nobody-of-this-name/model", *out
    )
    assert "is for language models: hf:FOLDER" in refused(capsys, "prune", "resnet8", "--widths", "heads", *out)
    assert "is for language models: hf:FOLDER" in refused(capsys, "prune", "resnet8", "--ranking", "uniform", *out)
