"""Folders that hold no model that can be read are refused with what to do."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers")

from language_models import llama, saved

from hfp import Budget
from hfp.errors import InputError
from hfp.language import from_pretrained, prune_folder
from hfp.language.folder import open_folder
from hfp.language.outline import outline_of


@pytest.fixture
def folder(tmp_path):
    return saved(llama(num_hidden_layers=1), tmp_path / "full")


def changed(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_every_missing_shard_is_named(folder):
    shards = sorted(folder.glob("model-*.safetensors"))
    for shard in shards[1:3]:
        shard.unlink()
    with pytest.raises(InputError, match=f"2 of {len(shards)} shards are missing.*{shards[1].name}, {shards[2].name}"):
        open_folder(folder)


def test_pickles_are_not_read_and_the_way_round_is_told(folder):
    for shard in folder.glob("model*"):
        shard.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(InputError, match=r"pytorch_model.bin, which is a pickle.*save_pretrained\(NEW\)"):
        open_folder(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="holds no weights: expected model.safetensors"):
        open_folder(folder)


def test_a_damaged_shard_is_named(folder):
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(InputError, match=f"{shard.name} is not a whole safetensors file"):
        open_folder(folder)


def test_an_index_can_not_name_files_outside_the_folder(folder):
    changed(folder / "model.safetensors.index.json", weight_map={"a": "../elsewhere.safetensors"})
    with pytest.raises(InputError, match="names a file outside the folder"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"architectures": ["OwnModel"], "auto_map": {"AutoModel": "own.OwnModel"}},
            "code that comes with a model is never run",
        ),
        ({"architectures": ["LlamaConfig"]}, "has no model class 'LlamaConfig'"),
        ({"architectures": []}, "names no class under 'architectures'"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"hidden_size": 40}, "has shape .* and config.json says"),
        ({"num_hidden_layers": 2}, "lacks tensors of its LlamaForCausalLM: model.layers.1"),
        ({"hidden_size": "wide"}, "transformers refuses the configuration"),
    ],
)
def test_a_configuration_of_another_model_is_refused(folder, fields, message):
    changed(folder / "config.json", **fields)
    with pytest.raises(InputError, match=message) as error:
        outline_of(open_folder(folder))
    assert "\n" not in str(error.value)


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no config.json"):
        prune_folder(tmp_path, tmp_path / "out", drop_blocks=[0])
    with pytest.raises(InputError, match="there is no folder"):
        prune_folder(tmp_path / "none", tmp_path / "out", drop_blocks=[0])


def test_a_folder_that_hfp_did_not_prune_is_left_to_transformers(folder):
    with pytest.raises(InputError, match="holds no hfp_prune.json"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"format": 9}, "expected format version 1, found 9"), ({"plain": "yes"}, "'plain' is str"),
     ({"blocks": {"stack": "model.layers", "count": 2, "kept": [5]}}, "ascending blocks")],
)  # fmt: skip
def test_a_damaged_record_is_refused(folder, tmp_path, fields, message):
    prune_folder(folder, tmp_path / "small", drop_blocks=[], budget=Budget(ratio=0.5))
    changed(tmp_path / "small" / "hfp_prune.json", **fields)
    with pytest.raises(InputError, match=message):
        from_pretrained(tmp_path / "small")


def test_a_model_without_weights_has_its_buffers(folder):
    model = outline_of(open_folder(folder)).model
    assert all(parameter.is_meta for parameter in model.parameters())
    expected = dict(llama().named_buffers())
    assert expected
    assert all(buffer.equal(expected[name]) for name, buffer in model.named_buffers())
