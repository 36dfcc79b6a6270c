"""Perplexity is that of a plain loop over windows, whether the model is in memory or not."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("transformers")

from language_models import decoder, llama, saved, sentences, with_tokenizer
from transformers import AutoTokenizer

import hfp
from hfp.errors import InputError
from hfp.language import perplexity_of_folder, prune_folder
from hfp.language.perplexity import cut, perplexity_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_tokenizer(saved(llama(), tmp_path_factory.mktemp("models") / "full"))


def naive(model, tokens, window):
    """The mean over all predicted tokens, one window and one token after the other, in float64."""
    losses = []
    with torch.no_grad():
        for start in range(0, len(tokens), window):
            words = tokens[start : start + window]
            if len(words) > 1:
                logits = model.double()(input_ids=words[None]).logits[0]
                losses += [-logits[place].log_softmax(-1)[words[place + 1]] for place in range(len(words) - 1)]
    return math.exp(sum(losses) / len(losses)), len(losses)


@pytest.mark.parametrize("window", [2, 7, 16, None])
def test_a_streamed_folder_has_the_perplexity_of_a_plain_loop(folder, tmp_path, window):
    text = sentences(tmp_path, 9)
    tokens = torch.tensor(AutoTokenizer.from_pretrained(folder)(text.read_text())["input_ids"])
    found = perplexity_of_folder(folder, text, window=window)
    expected, count = naive(llama(), tokens, window or 64)
    assert found.value == pytest.approx(expected, rel=1e-5)
    assert found.tokens == count


def test_nan_for_a_word_of_the_text_is_told():
    model = llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.nan
    assert perplexity_of(model, cut(torch.arange(6), 3)).value > 1
    with pytest.raises(InputError, match="the model gives NaN for tokens of the text"):
        perplexity_of(model, cut(torch.arange(9), 3))


def test_training_lowers_it_and_pruning_raises_it_again(tmp_path):
    model = llama()
    tokens = torch.arange(4, 15).repeat(30)
    text = cut(tokens, 22)
    before = perplexity_of(model, text)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        batch = tokens[:88].view(4, 22)
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = perplexity_of(model.eval().requires_grad_(False), text)
    assert after.value < 1.5 < before.value
    folder = with_tokenizer(saved(model, tmp_path / "full"))
    (tmp_path / "text.txt").write_text("the cat sat on a mat and dog ran to red\n" * 20)
    report = prune_folder(
        folder, tmp_path / "small", hfp.Budget(params=0.7), text=tmp_path / "text.txt", widths="feed-forward", window=22
    )
    full, pruned = report.perplexity
    assert full.value == pytest.approx(after.value, rel=0.05)
    assert pruned.value > full.value
    assert perplexity_of_folder(tmp_path / "small", tmp_path / "text.txt", window=22) == pruned


def test_a_pruned_folder_that_hfp_alone_reads_is_measured_too(folder, tmp_path):
    text = sentences(tmp_path, 4)
    report = prune_folder(
        folder, tmp_path / "small", hfp.Budget(ratio=0.5), text=text, importance="random", ranking="global"
    )
    assert not report.plain
    assert perplexity_of_folder(tmp_path / "small", text) == report.perplexity[1]


def test_the_last_window_may_be_shorter_but_predicts_something():
    assert [tuple(batch.shape) for batch in cut(torch.arange(21), 4).batches] == [(4, 4), (1, 4)]
    assert [tuple(batch.shape) for batch in cut(torch.arange(22), 4).batches] == [(4, 4), (1, 4), (1, 2)]
    assert cut(torch.arange(3), 8).windows == 1


@pytest.mark.parametrize(
    ("text", "window", "message"),
    [
        ("the", None, "has 1 tokens; at least 2"),
        ("the cat", 65, "more than the 64"),
        ("the cat", 1, "at least 2, not 1"),
    ],
)
def test_what_can_not_be_measured_is_refused(folder, tmp_path, text, window, message):
    (tmp_path / "text.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        perplexity_of_folder(folder, tmp_path / "text.txt", window=window)


def test_texts_and_tokenizers_that_are_missing_are_told(folder, tmp_path):
    with pytest.raises(InputError, match="can't be read as a text in UTF-8"):
        perplexity_of_folder(folder, tmp_path / "none.txt")
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="can't be read as a text in UTF-8"):
        perplexity_of_folder(folder, tmp_path / "text.txt")
    plain = saved(llama(num_hidden_layers=1), tmp_path / "plain")
    with pytest.raises(InputError, match="holds no tokenizer"):
        perplexity_of_folder(plain, sentences(tmp_path))
    empty = saved(decoder("Qwen2ForCausalLM", num_hidden_layers=1), tmp_path / "empty")
    with pytest.raises(InputError, match="finds no token in .*; copy the files of the model's tokenizer"):
        perplexity_of_folder(empty, sentences(tmp_path))


def test_models_that_do_not_predict_the_next_token_are_refused(tmp_path):
    from transformers import BertConfig, BertModel

    model = BertModel(
        BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    with_tokenizer(saved(model, tmp_path / "bert"))
    with pytest.raises(InputError, match="models that predict the next token; BertModel"):
        perplexity_of_folder(tmp_path / "bert", sentences(tmp_path))
