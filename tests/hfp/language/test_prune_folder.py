"""A folder of transformers is pruned into another one, exactly, without the model in memory."""

from __future__ import annotations

import errno
import json
import shutil
import weakref
from collections import namedtuple

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from language_models import SIZES, equal_states, llama, logits, saved, sentences, stored, with_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

import hfp
from hfp.errors import InputError
from hfp.importance import CriterionError, RandomImportance
from hfp.language import prune_folder, restore_folder, writing
from hfp.language.blocks import BlockMap
from hfp.language.folder import ModelFolder, open_folder
from hfp.language.stored import Layout
from hfp.reconstruct import MapError

HALF = hfp.Budget(macs=0.6)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A folder of several shards, which no test writes to."""
    return saved(llama(), tmp_path_factory.mktemp("models") / "full")


@pytest.fixture(scope="module")
def half(full, tmp_path_factory):
    """The same, pruned; and the report."""
    place = tmp_path_factory.mktemp("models") / "half"
    return place, prune_folder(full, place, HALF, shard_bytes=15_000)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A model of three blocks, pruned without its second one; and the report."""
    place = tmp_path_factory.mktemp("models")
    saved(llama(num_hidden_layers=3), place / "full")
    return place, prune_folder(place / "full", place / "small", hfp.Budget(macs=0.5), drop_blocks=[1])


@pytest.mark.parametrize("importance", ["l2", "lamp"])
def test_streamed_pruning_keeps_what_pruning_in_memory_keeps_to_the_last_bit(full, tmp_path, importance):
    model = llama()
    inputs = {"input_ids": torch.randint(60, (2, 16)), "use_cache": False}
    expected = hfp.prune(model, inputs, HALF, importance=importance, ignored_layers=["model.embed_tokens"])
    prune_folder(full, tmp_path / "small", HALF, importance=importance, ranking="layer")
    found = hfp.from_pretrained(tmp_path / "small")
    assert found.index_map == expected.index_map
    assert equal_states(found.model.state_dict(), expected.model.state_dict())


def test_transformers_reads_the_folder_by_itself_and_computes_the_same(half):
    small, report = half
    assert report.plain
    assert report.costs["macs"][1] <= 0.6 * report.costs["macs"][0]
    alone = AutoModelForCausalLM.from_pretrained(small).eval()
    assert alone.config.num_key_value_heads < 4
    assert alone.config.num_attention_heads == 2 * alone.config.num_key_value_heads
    assert torch.equal(logits(alone), logits(hfp.from_pretrained(small).model))
    assert len(list(small.glob("model-*.safetensors"))) > 1


def test_heads_that_share_one_key_value_head_go_and_transformers_reads_the_folder_by_itself(tmp_path):
    full = saved(llama(num_key_value_heads=1), tmp_path / "full")
    report = prune_folder(full, tmp_path / "small", hfp.Budget(params=0.9), widths="heads")
    assert report.plain, report.notes
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    assert (alone.config.num_attention_heads, alone.config.num_key_value_heads) == (4, 1)
    assert torch.equal(logits(alone), logits(hfp.from_pretrained(tmp_path / "small").model))


def test_a_single_head_stays_with_the_reason(tmp_path):
    full = saved(llama(num_attention_heads=1, num_key_value_heads=1), tmp_path / "full")
    with pytest.raises(InputError, match=r"heads: it has a single head, and one has to stay\); this model can lose"):
        prune_folder(full, tmp_path / "small", HALF, widths="heads")


def test_generation_with_a_cache_agrees_with_generation_without(full, tmp_path):
    prune_folder(full, tmp_path / "small", HALF, widths=("heads", "feed-forward", "hidden"))
    model = hfp.from_pretrained(tmp_path / "small").model
    words = torch.tensor([[5, 9, 20]])
    with_cache, without = (
        model.generate(words, max_new_tokens=6, do_sample=False, use_cache=use, eos_token_id=None)
        for use in (True, False)
    )
    assert with_cache.tolist() == without.tolist()


@pytest.mark.parametrize(
    ("widths", "ranking"), [("heads", "uniform"), ("feed-forward", "global"), ("hidden", "uniform")]
)
def test_what_training_changed_goes_back_into_the_full_model_and_all_else_is_the_full_models(
    full, tmp_path, widths, ranking
):
    prune_folder(full, tmp_path / "small", hfp.Budget(ratio=0.5), widths=widths, ranking=ranking)
    found = hfp.from_pretrained(tmp_path / "small")
    state = llama().state_dict()
    changed = {name: tensor + 1 for name, tensor in found.model.state_dict().items()}
    back = found.index_map.embed(changed, into=state)
    masks = found.index_map.masks()
    for name, tensor in state.items():
        assert torch.equal(back[name][~masks[name]], tensor[~masks[name]])
        assert torch.equal(back[name][masks[name]], tensor[masks[name]] + 1)
    assert any(not mask.all() for mask in masks.values())


def test_blocks_of_different_sizes_are_read_by_hfp_alone(full, tmp_path):
    report = prune_folder(full, tmp_path / "small", hfp.Budget(ratio=0.4), importance="random", ranking="global")
    assert not report.plain
    assert any(len(width.after) > 1 for width in report.widths)
    found = hfp.from_pretrained(tmp_path / "small")
    assert equal_states(found.index_map.restrict(llama().state_dict()), found.model.state_dict())
    assert "hfp.from_pretrained" in repr(report)


def test_a_width_that_a_configuration_scales_by_is_left_to_hfp(tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(**{**SIZES, "num_hidden_layers": 2})).eval()  # scales by its hidden width
    saved(model, tmp_path / "full")
    report = prune_folder(tmp_path / "full", tmp_path / "small", hfp.Budget(ratio=0.5), widths="hidden")
    assert not report.plain


def test_groups_without_scores_are_left_alone_and_told(full, tmp_path):
    def by_heads(group):
        if len(group[0].idxs) != 4:
            raise CriterionError("it knows heads alone")
        return torch.arange(4.0)

    report = prune_folder(full, tmp_path / "small", hfp.Budget(ratio=0.5), importance=by_heads)
    assert [width.after for width in report.widths] == [(2,), (48,)]
    assert "2 groups without scores" in report.notes[0]
    assert "it knows heads alone" in report.notes[0]


def test_not_enough_memory_for_a_layer_is_told(full, tmp_path):
    def greedy(group):
        return torch.empty(2**60).sum()

    with pytest.raises(InputError, match="not enough memory to score one layer of the group of model.layers.0"):
        prune_folder(full, tmp_path / "small", HALF, importance=greedy)


def test_tied_weights_stay_tied(tmp_path):
    saved(llama(tie_word_embeddings=True), tmp_path / "full")
    prune_folder(tmp_path / "full", tmp_path / "small", hfp.Budget(params=0.7), widths=("feed-forward", "hidden"))
    model = hfp.from_pretrained(tmp_path / "small").model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert "lm_head.weight" not in stored(tmp_path / "small")


def test_dtypes_and_files_beside_the_weights_are_kept(tmp_path):
    folder = with_tokenizer(saved(llama().bfloat16(), tmp_path / "full"))
    (folder / "modeling_own.py").write_text("raise SystemExit\n")
    prune_folder(folder, tmp_path / "small", HALF)
    assert {tensor.dtype for tensor in stored(tmp_path / "small").values()} == {torch.bfloat16}
    assert hfp.from_pretrained(tmp_path / "small").model.dtype == torch.bfloat16
    assert hfp.from_pretrained(tmp_path / "small", dtype=torch.float32).model.dtype == torch.float32
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert {"tokenizer.json", "generation_config.json", "hfp_prune.json", "hfp_index_map.safetensors"} <= names
    assert "modeling_own.py" not in names


def test_convolution_style_layers_of_gpt2_lose_whole_heads(tmp_path):
    config = GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    model = GPT2LMHeadModel(config).eval()
    saved(model, tmp_path / "full")
    report = prune_folder(tmp_path / "full", tmp_path / "small", hfp.Budget(ratio=0.5), widths="heads")
    found = hfp.from_pretrained(tmp_path / "small")
    assert not report.plain
    assert found.model.transformer.h[0].attn.c_attn.weight.shape == (32, 48)
    assert equal_states(found.index_map.restrict(model.state_dict()), found.model.state_dict())


def test_tensors_that_transformers_renames_when_it_reads_them_are_found(tmp_path):
    sizes = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, num_hidden_layers=1, bos_token_id=1, eos_token_id=2)).eval()
    assert "lm_head.weight" not in open_folder(saved(model, tmp_path / "full")).tensors
    prune_folder(tmp_path / "full", tmp_path / "small", hfp.Budget(ratio=0.5), widths="feed-forward")
    found = hfp.from_pretrained(tmp_path / "small")
    assert equal_states(found.index_map.restrict(model.state_dict()), found.model.state_dict())


def test_blocks_that_are_named_go_and_come_back(deep):
    place, report = deep
    assert (report.removed_blocks, report.plain) == ((1,), True)
    found = hfp.from_pretrained(place / "small")
    assert isinstance(found.index_map, BlockMap)
    assert len(AutoModelForCausalLM.from_pretrained(place / "small").model.layers) == 2
    state = llama(num_hidden_layers=3).state_dict()
    assert equal_states(found.index_map.restrict(state), found.model.state_dict())
    changed = {name: tensor + 1 for name, tensor in found.model.state_dict().items()}
    back = found.index_map.embed(changed, into=state)
    assert all(torch.equal(back[name], state[name]) for name in state if ".layers.1." in name)
    second, last = (f"model.layers.{block}.mlp.down_proj.weight" for block in (1, 2))
    assert torch.equal(found.index_map.restrict(back)[second], changed[second])
    assert (back[last] != state[last]).any()


def test_blocks_alone_need_no_budget(full, tmp_path):
    report = prune_folder(full, tmp_path / "small", drop_blocks=[0])
    assert report.widths == ()
    assert len(hfp.from_pretrained(tmp_path / "small").model.model.layers) == 1


def test_the_block_that_changes_nothing_goes_first(tmp_path):
    model = llama(num_hidden_layers=3)
    for layer in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
        torch.nn.init.zeros_(layer.weight)
    folder = with_tokenizer(saved(model, tmp_path / "full"))
    report = prune_folder(folder, tmp_path / "small", drop_blocks=1, text=sentences(tmp_path), window=16)
    assert report.removed_blocks == (1,)
    assert report.influence[1] == pytest.approx(0, abs=1e-6)
    assert min(report.influence[0], report.influence[2]) > 0.01
    assert report.perplexity[0].value == pytest.approx(report.perplexity[1].value, rel=1e-6)


def test_a_folder_is_put_back_into_its_parent_tensor_by_tensor(deep, tmp_path):
    place, _ = deep
    restore_folder(place / "small", place / "full", tmp_path / "back", shard_bytes=30_000)
    assert equal_states(stored(tmp_path / "back"), stored(place / "full"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert torch.equal(logits(model), logits(llama(num_hidden_layers=3)))


def test_another_parent_is_refused_unless_any_will_do(half, tmp_path):
    small, _ = half
    saved(llama(seed=1), tmp_path / "sibling")
    with pytest.raises(InputError, match="any_parent=True"):
        restore_folder(small, tmp_path / "sibling", tmp_path / "back")
    restore_folder(small, tmp_path / "sibling", tmp_path / "back", any_parent=True)
    back, own = stored(tmp_path / "back"), stored(tmp_path / "sibling")
    assert 0 < sum(int((back[name] != own[name]).sum()) for name in own) < sum(map(torch.numel, own.values()))


def test_at_most_one_block_or_one_new_shard_is_in_memory(tmp_path, monkeypatch):
    folder = with_tokenizer(saved(llama(num_hidden_layers=8), tmp_path / "full"))
    living, most = [0], [0]
    read = ModelFolder.read

    def counted(self, name):
        found = read(self, name).clone()
        size = found.numel() * found.element_size()
        living[0] += size
        most[0] = max(most[0], living[0])
        weakref.finalize(found.untyped_storage(), lambda: living.__setitem__(0, living[0] - size))
        return found

    monkeypatch.setattr(ModelFolder, "read", counted)
    widths = ("heads", "feed-forward", "hidden")
    prune_folder(folder, tmp_path / "small", HALF, widths=widths, text=sentences(tmp_path), shard_bytes=10_000)
    block = sum(parameter.numel() * 4 for parameter in llama().model.layers[0].parameters())
    assert block <= most[0] <= 1.5 * block
    assert open_folder(folder).bytes > 8 * block


def test_a_model_that_computes_something_else_is_not_written(full, tmp_path, monkeypatch):
    stored = Layout.stored
    monkeypatch.setattr(
        Layout, "stored", lambda *given: {name: tensor.flip(0) for name, tensor in stored(*given).items()}
    )
    with pytest.raises(MapError, match="does not compute what it should"):
        prune_folder(full, tmp_path / "small", HALF)
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_nan_in_its_weights_is_told(tmp_path):
    model = llama()
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[0, 0] = torch.nan
    folder = saved(model, tmp_path / "full")
    with pytest.raises(InputError, match="full gives outputs that are not finite, .*: model.layers.1.self_attn.k_proj"):
        prune_folder(folder, tmp_path / "small", HALF)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_nothing_is_left_of_an_unfinished_folder(full, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(writing, "save_file", fail)
    with pytest.raises((KeyboardInterrupt, InputError), match="No space left|^$"):
        prune_folder(full, tmp_path / "small", HALF)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_written(full, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1000))
    with pytest.raises(InputError, match=r"needs [\d,]+ bytes, and .* has 1,000 left"):
        prune_folder(full, tmp_path / "small", HALF)


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_that_another_program_has_written_meanwhile_stays(full, tmp_path, replace):
    def meanwhile(doing):
        (tmp_path / "small").mkdir(exist_ok=True)

    with pytest.warns(match="small was written by another program meanwhile, and stays; the new folder is .*small-2"):
        report = prune_folder(full, tmp_path / "small", HALF, progress=meanwhile, replace=replace)
    assert not any((tmp_path / "small").iterdir())
    assert report.out == str(tmp_path / "small-2")
    assert hfp.from_pretrained(tmp_path / "small-2").metadata["report"]["out"] == report.out


def test_a_folder_that_another_program_has_written_while_one_is_restored_stays(full, half, tmp_path):
    def meanwhile(doing):
        (tmp_path / "back").mkdir(exist_ok=True)

    with pytest.warns(match="back was written by another program meanwhile, and stays"):
        found = restore_folder(half[0], full, tmp_path / "back", progress=meanwhile)
    assert found == tmp_path / "back-2"
    assert not any((tmp_path / "back").iterdir())


def test_a_folder_that_appears_in_the_last_moment_stays(tmp_path):
    out = tmp_path / "small"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="small can't be written"), writing.unfinished_folder(out, 0) as unfinished:
        writing.finish(unfinished, out, out, replace=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["small", "notes.txt"]


def test_a_folder_that_is_read_is_never_replaced_under_any_of_its_names(full, half, tmp_path, monkeypatch):
    shutil.copytree(half[0], tmp_path / "small")
    shutil.copytree(half[0], tmp_path / "parent")
    monkeypatch.chdir(tmp_path / "parent")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(InputError, match="../parent is a folder that is read here; give another one"):
        prune_folder(tmp_path / "parent", "../parent", HALF, replace=True)
    for out in ("../parent", "../small"):
        with pytest.raises(InputError, match=f"{out} is a folder that is read here; give another one"):
            restore_folder("../small", "../parent", out, replace=True, any_parent=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*")}


def test_a_folder_is_on_the_disk_before_the_one_that_it_replaces_is_gone(full, half, tmp_path, monkeypatch):
    shutil.copytree(half[0], tmp_path / "small")
    done = []
    monkeypatch.setattr(writing, "flush", lambda path: done.append(("flushed", path.name)))
    monkeypatch.setattr(writing.shutil, "rmtree", lambda path, **_: done.append(("gone", path.suffix)))
    prune_folder(full, tmp_path / "small", HALF, replace=True)
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert {name for what, name in done[: len(names)]} == names
    assert done[len(names)] == ("gone", ".old")


def test_an_index_map_of_another_model_is_refused_in_one_line(full, half, tmp_path):
    other = saved(llama(num_hidden_layers=1), tmp_path / "other")
    prune_folder(other, tmp_path / "shallow", HALF)
    shutil.copytree(half[0], tmp_path / "small")
    shutil.copy(tmp_path / "shallow" / "hfp_index_map.safetensors", tmp_path / "small")
    for read in (hfp.from_pretrained, lambda folder: restore_folder(folder, full, tmp_path / "back")):
        with pytest.raises(MapError, match="hfp_index_map.safetensors is of another model than config.json"):
            read(tmp_path / "small")


@pytest.mark.parametrize("dtype", ["bfloat16", torch.int8])
def test_a_dtype_that_is_none_of_floating_point_is_refused(half, dtype):
    with pytest.raises(InputError, match="dtype is a floating-point type of torch, such as torch.bfloat16, not"):
        hfp.from_pretrained(half[0], dtype=dtype)


def test_whole_numbers_may_be_those_of_numpy(full, tmp_path):
    report = prune_folder(full, tmp_path / "small", drop_blocks=np.array([1]), shard_bytes=np.int64(20_000))
    assert report.removed_blocks == (1,)


def test_a_folder_comes_back_where_its_replacement_is_interrupted(full, half, tmp_path, monkeypatch):
    shutil.copytree(half[0], tmp_path / "small")
    before = stored(tmp_path / "small")
    rename = writing.Path.rename

    def interrupted(path, target):
        if path.suffix == ".tmp":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(writing.Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune_folder(full, tmp_path / "small", hfp.Budget(macs=0.8), replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert equal_states(stored(tmp_path / "small"), before)


def test_a_pruned_folder_is_replaced_only_when_asked_and_no_other_folder_ever(full, half, tmp_path):
    shutil.copytree(half[0], tmp_path / "small")
    with pytest.raises(InputError, match="exists; give another name"):
        prune_folder(full, tmp_path / "small", HALF)
    prune_folder(full, tmp_path / "small", drop_blocks=[0], replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert json.loads((tmp_path / "small" / "hfp_prune.json").read_text())["blocks"]["kept"] == [1]
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="is not a pruned model's folder"):
        prune_folder(full, tmp_path / "mine", HALF, replace=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give a budget, or say how many blocks"),
        ({"budget": HALF, "widths": ()}, r"widths are some of heads, feed-forward, hidden, not \(\)"),
        ({"budget": HALF, "widths": None}, "widths are some of heads, feed-forward, hidden, not None"),
        ({"budget": HALF, "widths": ["heads", "heads"]}, "widths list heads twice; list each once"),
        ({"budget": hfp.Budget(latency=0.5)}, "latency can't be limited"),
        (
            {"budget": HALF, "widths": ("heads", "experts")},
            "widths are some of heads, feed-forward, hidden, not 'experts'",
        ),
        ({"budget": HALF, "importance": "group-fisher"}, "scores with data"),
        ({"budget": HALF, "importance": RandomImportance}, "importance is the class RandomImportance; give an object"),
        ({"budget": HALF, "ranking": "measured"}, "ranking is one of uniform, layer, global"),
        ({"drop_blocks": 1}, "measured on a text"),
        ({"drop_blocks": [7]}, "has blocks 0 to 1; there is no block 7"),
        ({"drop_blocks": [0, 1]}, "1 to 1 of the 2 blocks"),
        ({"drop_blocks": "all"}, "drop_blocks is how many blocks go"),
        ({"drop_blocks": [0, 0]}, "drop_blocks lists block 0 twice; list each once"),
        ({"drop_blocks": 1.5}, "drop_blocks is how many blocks go, or a list of their indices, not 1.5"),
        ({"drop_blocks": [0, True]}, r"drop_blocks is how many blocks go, or a list of their indices, not \(0, True\)"),
        ({"drop_blocks": []}, "give a budget, or say how many blocks"),
        ({"budget": hfp.Budget(macs=0.01)}, "is the least that is reachable here"),
        ({"budget": HALF, "round_to": 1000}, "no width can lose a part with round_to=1000"),
        ({"budget": HALF, "shard_bytes": 0}, "shard_bytes is a whole number"),
    ],
)
def test_what_can_not_be_done_is_refused_in_a_line_and_nothing_is_written(full, tmp_path, given, message):
    with pytest.raises(InputError, match=message) as error:
        prune_folder(full, tmp_path / "small", **given)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
