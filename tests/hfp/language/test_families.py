"""Language models of many families are pruned from folder to folder: fused projections, experts, unusual forms."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from language_models import decoder, equal_states, logits, saved, stored
from safetensors.torch import load_file, save_file

import hfp
from hfp.errors import InputError
from hfp.language import folder, planning, prune_folder, restore_folder
from hfp.language.folder import open_folder
from hfp.reconstruct import MapError

HALF = hfp.Budget(ratio=0.5)
EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
MIXTURES = {
    "MixtralForCausalLM": {"num_local_experts": 4, "intermediate_size": 32},
    "Qwen3MoeForCausalLM": {"num_experts": 4, **EXPERTS},
    "GptOssForCausalLM": {"num_local_experts": 4, "intermediate_size": 32, "sliding_window": 8},
}
FUSED = {
    "GPT2LMHeadModel": {"n_embd": 32, "n_head": 4, "n_layer": 2},
    "GPTNeoXForCausalLM": {},
    "Phi3ForCausalLM": {"head_dim": 4},
    "FalconForCausalLM": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_attention_heads": 4},
    "StableLmForCausalLM": {"num_attention_heads": 4, "num_key_value_heads": 2},
}
SLOW = ("GPTNeoXForCausalLM", "StableLmForCausalLM", "Qwen3MoeForCausalLM")


def pruned(model, place, budget=HALF, **asked):
    """The report, and the model and its place as hfp reads them."""
    saved(model, place / "full")
    report = prune_folder(place / "full", place / "small", budget, **asked)
    return report, hfp.from_pretrained(place / "small")


def kinds_that_went(report):
    return {width.kind for width in report.widths if width.after != width.before}


def generated(model, use_cache):
    words = torch.tensor([[5, 9, 20]])
    found = model.generate(
        words, max_new_tokens=5, do_sample=False, use_cache=use_cache, eos_token_id=None, pad_token_id=0
    )
    return [int(word) for word in found[0]]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in (*FUSED, *MIXTURES)]
)
def test_heads_and_feed_forward_go_and_what_is_left_computes_and_comes_back(tmp_path, name):
    model = decoder(name, **{**FUSED, **MIXTURES}[name])
    report, found = pruned(model, tmp_path)
    assert kinds_that_went(report) == {"heads", "feed-forward"}
    assert generated(found.model, True) == generated(found.model, False)
    state = model.state_dict()
    assert equal_states(found.index_map.restrict(state), found.model.state_dict())
    assert equal_states(found.index_map.embed(found.model.state_dict(), into=state), state)
    if report.plain:
        alone = type(model).from_pretrained(tmp_path / "small").eval()
        assert torch.equal(logits(alone), logits(found.model))
    assert report.plain == (name in (*MIXTURES, "Phi3ForCausalLM"))


def test_experts_are_stored_one_by_one_as_transformers_stores_them(tmp_path):
    pruned(decoder("MixtralForCausalLM", **MIXTURES["MixtralForCausalLM"]), tmp_path)
    full, small = stored(tmp_path / "full"), stored(tmp_path / "small")
    assert full.keys() == small.keys()
    assert any(".experts.3." in key for key in small)
    assert not any("gate_up_proj" in key for key in small)


@pytest.mark.slow
def test_pruned_experts_are_put_back_into_the_folder_of_the_full_model(tmp_path):
    pruned(decoder("MixtralForCausalLM", **MIXTURES["MixtralForCausalLM"]), tmp_path)
    restore_folder(tmp_path / "small", tmp_path / "full", tmp_path / "back")
    assert equal_states(stored(tmp_path / "back"), stored(tmp_path / "full"))


def test_trained_experts_are_put_back_entry_by_entry(tmp_path):
    _, found = pruned(decoder("MixtralForCausalLM", **MIXTURES["MixtralForCausalLM"]), tmp_path)
    shard = tmp_path / "small" / "model.safetensors"
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    tensors = load_file(shard)
    save_file({**tensors, name: tensors[name] + 1}, shard, {"format": "pt"})
    restore_folder(tmp_path / "small", tmp_path / "full", tmp_path / "back")
    full, back = stored(tmp_path / "full"), stored(tmp_path / "back")
    changed = {key for key in full if not full[key].equal(back[key])}
    assert changed == {name}
    kept = found.index_map.tensors["model.layers.1.mlp.experts.gate_up_proj"].compact_shape[1] // 2
    assert int((full[name] != back[name]).any(1).sum()) == kept


def test_experts_lose_what_their_kernel_can_read_in_the_stored_dtype(tmp_path):
    model = decoder("MixtralForCausalLM", num_local_experts=4, intermediate_size=40).bfloat16()
    report, _ = pruned(model, tmp_path, widths="feed-forward")
    assert report.widths[0].after == (24,)  # a multiple of 16 bytes, and not 20


def test_widths_that_one_field_says_lose_the_same_share(tmp_path):
    shared = {"n_routed_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
    model = decoder("Glm4MoeForCausalLM", **EXPERTS, **shared)
    report, _ = pruned(model, tmp_path, hfp.Budget(macs=0.6), widths="feed-forward")
    after = {width.layer.partition(".mlp.")[2]: width.after[0] for width in report.widths}
    assert after["shared_experts.gate_proj"] == 2 * after["experts.gate_up_proj"] < 64
    assert report.plain


def test_norms_without_weights_run_over_the_channels_that_are_left(tmp_path):
    report, _ = pruned(decoder("OlmoForCausalLM"), tmp_path, widths="hidden")
    assert kinds_that_went(report) == {"hidden"}


def test_the_rest_of_blocks_that_alternate_keep_their_kinds(tmp_path):
    model = decoder("Gemma2ForCausalLM", num_hidden_layers=3, sliding_window=4)
    report, found = pruned(model, tmp_path, None, drop_blocks=[0])
    assert report.plain
    assert found.model.config.layer_types == ["full_attention", "sliding_attention"]


def test_blocks_of_a_decoder_with_its_own_field_go(tmp_path):
    sizes = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
    report, found = pruned(decoder("BartForCausalLM", **sizes), tmp_path, None, drop_blocks=[1])
    assert report.plain
    assert len(found.model.model.decoder.layers) == 1


@pytest.mark.slow
def test_infinities_in_a_configuration_are_read(tmp_path):
    sizes = {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4, "expand": 2}
    model = decoder("Mamba2ForCausalLM", **sizes)
    saved(model, tmp_path / "full")
    assert "Infinity" in (tmp_path / "full" / "config.json").read_text()
    report = prune_folder(tmp_path / "full", tmp_path / "small", HALF, widths="hidden")
    assert kinds_that_went(report) == {"hidden"}


def test_a_model_that_runs_only_with_its_weights_is_followed_with_them_where_they_fit(tmp_path, monkeypatch):
    sizes = {"n_embd": 32, "n_head": 4, "n_layer": 2}
    report, _ = pruned(decoder("OpenAIGPTLMHeadModel", **sizes), tmp_path)
    assert kinds_that_went(report) == {"heads", "feed-forward"}
    monkeypatch.setattr(planning, "_fits", lambda _: False)
    with pytest.raises(InputError, match="can't be followed .* Where it fits into memory, load it and call hfp.prune"):
        prune_folder(tmp_path / "full", tmp_path / "other", HALF)


@pytest.mark.parametrize("heads", [4, 6])  # of hidden size 36, as many channels as there are heads, or not
def test_heads_whose_place_matters_stay_with_the_reason(tmp_path, heads):
    report, _ = pruned(
        decoder("BloomForCausalLM", hidden_size=36, n_layer=2, n_head=heads, num_attention_heads=heads), tmp_path
    )
    assert kinds_that_went(report) == {"feed-forward"}
    reason = "heads can't become narrower: transformer.h.0.self_attention: it is added to a tensor of fixed size"
    assert reason in report.notes


def test_heads_that_lie_in_one_dimension_with_the_key_value_head_that_they_share_stay_with_its_reason(tmp_path):
    sizes = {"num_attention_heads": 4, "multi_query": True, "new_decoder_architecture": False, "alibi": False}
    report, _ = pruned(decoder("FalconForCausalLM", **sizes), tmp_path)
    reason = "this dimension is looked up by number: all heads and the one key-value head lie in it"
    assert f"heads can't become narrower: transformer.h.0.self_attention: {reason}" in report.notes


def test_a_model_that_counts_no_heads_is_not_said_to_have_a_single_one(tmp_path):
    none = dict.fromkeys(("num_attention_heads", "num_key_value_heads"))
    saved(decoder("RwkvForCausalLM", attention_hidden_size=32, context_length=64, **none), tmp_path / "full")
    with pytest.raises(InputError, match=r"heads: its code lets a part of every head go, but no whole head"):
        prune_folder(tmp_path / "full", tmp_path / "small", HALF, widths="heads")


def test_nothing_that_can_go_is_refused_with_every_reason(tmp_path):
    saved(decoder("BloomForCausalLM", n_layer=2, n_head=4, num_attention_heads=4), tmp_path / "full")
    message = r"none of heads can become narrower \(heads: transformer.h.0.self_attention: .*\); this model can lose"
    with pytest.raises(InputError, match=message):
        prune_folder(tmp_path / "full", tmp_path / "small", HALF, widths="heads")


def test_the_report_says_what_a_configuration_can_not(tmp_path):
    report, _ = pruned(decoder("GPT2LMHeadModel", **FUSED["GPT2LMHeadModel"]), tmp_path)
    assert any("by GPT2Config transformer.h.0.attn.c_attn.weight would have the shape" in note for note in report.notes)
    narrow = prune_folder(tmp_path / "full", tmp_path / "narrow", HALF, widths="feed-forward")
    assert narrow.plain


@pytest.mark.slow
def test_a_cache_of_the_full_size_is_found_before_anything_is_written(tmp_path):
    sizes = {"lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"]}
    model = decoder("RecurrentGemmaForCausalLM", **{**sizes, "num_key_value_heads": 1})
    saved(model, tmp_path / "full")
    with pytest.raises(MapError, match="it does not run .* ask for other widths, or remove blocks instead"):
        prune_folder(tmp_path / "full", tmp_path / "small", HALF)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_missing_expert_is_told(tmp_path):
    place = saved(decoder("MixtralForCausalLM", **MIXTURES["MixtralForCausalLM"]), tmp_path / "full", 10**9)
    shard = place / "model.safetensors"
    tensors = load_file(shard)
    del tensors["model.layers.1.block_sparse_moe.experts.2.w2.weight"]
    save_file(tensors, shard, {"format": "pt"})
    message = r"model.layers.1.mlp.experts.down_proj has shape \[3, 32, 32\], and config.json says \[4, 32, 32\]"
    with pytest.raises(InputError, match=message):
        prune_folder(place, tmp_path / "small", HALF)


def test_experts_of_other_shapes_are_told(tmp_path):
    place = saved(decoder("MixtralForCausalLM", **MIXTURES["MixtralForCausalLM"]), tmp_path / "full", 10**9)
    shard = place / "model.safetensors"
    tensors = load_file(shard)
    tensors["model.layers.0.block_sparse_moe.experts.1.w1.weight"] = torch.zeros(5, 32)
    save_file(tensors, shard, {"format": "pt"})
    with pytest.raises(InputError, match=r"transformers can't make model.layers.0.mlp.experts.gate_up_proj of"):
        prune_folder(place, tmp_path / "small", HALF)


def test_numbers_of_another_kind_are_told(tmp_path, monkeypatch):
    saved(decoder("LlamaForCausalLM"), tmp_path / "full")
    monkeypatch.delitem(folder._DTYPES, "F32")
    with pytest.raises(InputError, match="has numbers of the kind F32, which torch can't prune"):
        open_folder(tmp_path / "full")
