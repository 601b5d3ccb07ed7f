"""Latent attention: both forms of its files, what its cache costs, what is refused.

The checkpoints and logits are the families' goldens (test_families.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from test_families import GOLDEN, expected_of, read_safetensors, tokens_of, write_safetensors
from tiny import Model, encode

import converters
from converters._mapping import ModelMapping
from pyengine import ConversionError, Engine, ModelFile, ModelFormatError, UnsupportedModelError

NAMES = ["deepseek2", "deepseek3", "glm4-flash"]
HEADS, ROTATED, PLAIN, VALUE, LATENT, LAYERS = 2, 32, 32, 32, 32, 2


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(
        (GOLDEN / "families" / name / "config.json").read_text("utf-8")
    )
    return config


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """The F32 file of a golden, to be changed."""
    folder = tmp_path_factory.mktemp("latent")

    def load(name: str) -> Model:
        source, out = folder / name, folder / f"{name}.gguf"
        if not out.exists():
            shutil.copytree(GOLDEN / "families" / name, source)
            shutil.copy(GOLDEN / "llama-grouped-tied" / "tokenizer.json", source)
            converters.convert(source, out, dtype="f32", self_test=False)
        reader = gguf.GGUFReader(out)
        metadata = {
            key: field.contents()
            for key, field in reader.fields.items()
            if not key.startswith("GGUF.")
        }
        return Model(metadata, {t.name: np.array(t.data) for t in reader.tensors})

    return load


def to_legacy(model: Model, heads: int, dtype: str = "F32") -> None:
    """What llama.cpp's converter wrote before it split what leads out of the latent."""
    metadata = model.metadata
    for key in ("key_length", "value_length"):
        metadata[f"deepseek2.attention.{key}"] = metadata.pop(f"deepseek2.attention.{key}_mla")
    metadata["deepseek2.attention.head_count_kv"] = heads
    for layer in range(LAYERS):
        at = f"blk.{layer}.attn_"
        k, v = (model.tensors.pop(f"{at}{x}_b.weight") for x in "kv")
        rows = np.concatenate([k.swapaxes(1, 2), v], axis=1).reshape(-1, LATENT)
        model.tensors[f"{at}kv_b.weight"] = encode(np.ascontiguousarray(rows), dtype)
        if dtype != "F32":
            model.types[f"{at}kv_b.weight"] = gguf.GGMLQuantizationType[dtype]


@pytest.mark.parametrize("name", NAMES)
def test_the_form_with_one_tensor_for_keys_and_values_is_the_same_model(
    loaded: Callable[[str], Model], tmp_path: Path, name: str
) -> None:
    model = loaded(name)
    to_legacy(model, config_of(name)["num_attention_heads"])
    tokens, expected = tokens_of(name), expected_of(name)
    with Engine(model.save(tmp_path / "legacy.gguf"), n_threads=3, n_batch=7) as engine:
        found = engine.logits(tokens)
        np.testing.assert_allclose(found[-len(expected) :], expected, rtol=0, atol=1e-4)
        session = engine.session()
        one_by_one = [session.feed([token])[0] for token in tokens]
        assert np.array_equal(one_by_one, found)
        # Batches of which nobody wants logits, and the last.
        assert np.array_equal(engine.session().feed(tokens)[0], found[-1])


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0"])
def test_the_older_form_may_be_quantized(
    loaded: Callable[[str], Model], tmp_path: Path, dtype: str
) -> None:
    model = loaded("deepseek3")
    to_legacy(model, HEADS, dtype)
    tokens, expected = tokens_of("deepseek3"), expected_of("deepseek3")
    with Engine(model.save(tmp_path / "legacy.gguf"), n_threads=2) as engine:
        found = engine.logits(tokens)[-len(expected) :]
    error = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
    assert 0 < error < (0.05 if dtype == "Q8_0" else 0.5)


@pytest.mark.parametrize(("kv_type", "block_bytes"), [("f16", 64), ("q8_0", 34), ("q4_0", 18)])
def test_the_cache_holds_one_latent_for_all_heads(
    loaded: Callable[[str], Model], tmp_path: Path, kv_type: Any, block_bytes: int
) -> None:
    path = loaded("deepseek3").save(tmp_path / "model.gguf")
    with Engine(path, kv_type=kv_type) as engine:
        blocks = (LATENT + ROTATED) // 32
        assert engine.info.kv_page_bytes == 32 * LAYERS * blocks * block_bytes
        assert engine.info.n_kv_heads == 1
        # Scores of caches of few bits are near those of the widest.
        found = engine.logits(tokens_of("deepseek3"))[-6:]
    error = np.sqrt(np.mean((found - expected_of("deepseek3")) ** 2))
    assert error < {"f16": 0.01, "q8_0": 0.1, "q4_0": 1.0}[kv_type]


def test_layers_that_predict_further_tokens_are_left_out(
    loaded: Callable[[str], Model], tmp_path: Path
) -> None:
    model = loaded("glm4-flash")
    model.metadata["deepseek2.block_count"] += 1
    model.metadata["deepseek2.nextn_predict_layers"] = 1
    model.tensors["blk.2.nextn.eh_proj.weight"] = np.zeros((32, 64), np.float32)
    model.tensors["blk.2.attn_norm.weight"] = np.zeros(32, np.float32)
    path = model.save(tmp_path / "more.gguf")
    expected = expected_of("glm4-flash")
    with Engine(path) as engine:
        found = engine.logits(tokens_of("glm4-flash"))[-len(expected) :]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    model.tensors["blk.3.attn_norm.weight"] = np.zeros(32, np.float32)
    with pytest.raises(UnsupportedModelError, match=r"blk\.3\.attn_norm\.weight"):
        Engine(model.save(tmp_path / "too-many.gguf"))


def test_they_are_left_out_of_a_conversion(tmp_path: Path) -> None:
    folder = tmp_path / "deepseek3"
    shutil.copytree(GOLDEN / "families" / "deepseek3", folder)
    shutil.copy(GOLDEN / "llama-grouped-tied" / "tokenizer.json", folder)
    converters.convert(folder, tmp_path / "expected.gguf", dtype="f32")
    stored = read_safetensors(folder / "model.safetensors")
    stored["model.layers.2.eh_proj.weight"] = ("BF16", [4], bytes(8))
    write_safetensors(folder / "model.safetensors", stored)
    converters.convert(folder, tmp_path / "found.gguf", dtype="f32")
    found, expected = (tmp_path / f"{n}.gguf" for n in ("found", "expected"))
    assert found.read_bytes() == expected.read_bytes()


def test_a_bias_of_choices_without_a_named_gate_means_sigmoids(
    loaded: Callable[[str], Model], tmp_path: Path
) -> None:
    model = loaded("deepseek3")
    del model.metadata["deepseek2.expert_gating_func"]
    expected = expected_of("deepseek3")
    with Engine(model.save(tmp_path / "model.gguf")) as engine:
        found = engine.logits(tokens_of("deepseek3"))[-len(expected) :]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


# ---- what does not fit together

HUGE = 2**32 - 1
YARN = {"rope_type": "yarn", "factor": 4.0}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"attention.kv_lora_rank": 0}, "KV latent length: expected 1 to 4194304, found 0"),
    ({"attention.kv_lora_rank": HUGE}, "KV latent length: expected 1 to"),
    ({"attention.kv_lora_rank": 31}, "key length: expected 63 to 63, found 64"),
    ({"attention.q_lora_rank": HUGE}, "query latent length: expected 0 to"),
    ({"attention.q_lora_rank": 0}, "attn_q.weight: expected a tensor"),
    ({"attention.key_length": 96}, "key length: expected 64 to 64, found 96"),
    ({"attention.value_length": 16}, "value length: expected 32 to 32, found 16"),
    ({"attention.key_length_mla": 0}, "head key length: expected 3 to"),
    ({"attention.key_length_mla": 32}, "rotated dimensions: expected 2 to 31, found 32"),
    ({"attention.key_length_mla": HUGE}, "head key length: expected 3 to"),
    ({"attention.value_length_mla": 0}, "head value length: expected 1 to"),
    ({"attention.value_length_mla": 48}, "attn_v_b.weight: expected shape .32, 48, 2"),
    ({"attention.head_count": HUGE}, "number of heads: expected 1 to 65536"),
    ({"attention.head_count": 0}, "number of heads: expected 1 to 65536"),
    ({"attention.head_count_kv": 2}, "number of KV heads: expected 1 to 1, found 2"),
    ({"attention.sliding_window": 8}, "attention window: expected 0 to 0, found 8"),
    ({"rope.dimension_count": 0}, "rotated dimensions: expected 2 to 63, found 0"),
    ({"rope.dimension_count": 31}, "key length: expected 63 to 63, found 64"),
    ({"leading_dense_block_count": 3}, "leading dense layers: expected 0 to 2, found 3"),
    ({"leading_dense_block_count": 0}, "blk.0.ffn_gate_inp.weight: expected a tensor"),
    ({"nextn_predict_layers": 2}, "layers that predict: expected 0 to 1, found 2"),
    ({"expert_group_count": 7}, "expert groups: expected 1 to 6, found 7"),
    ({"expert_group_count": 4}, "experts: expected a multiple of the 4 groups, found 6"),
    ({"expert_group_used_count": 4}, "expert groups used: expected 1 to 3, found 4"),
    ({"expert_group_used_count": 0}, "expert groups used: expected 1 to 3, found 0"),
    ({"expert_group_count": 6, "expert_group_used_count": 1}, "experts used: expected 1 to 1"),
    ({"expert_shared_count": HUGE}, "shared expert length: expected 1 to 16777216"),
    ({"expert_shared_count": 2}, "shexp.weight: expected shape"),
    ({"expert_gating_func": 4}, "expert gating: expected 1 .softmax. or 2 .sigmoid., found 4"),
    (
        {"expert_weights_scale": float("nan")},
        "expert_weights_scale: expected a finite number, found nan",
    ),
    ({"expert_weights_scale": 1e9}, "expert scale: expected 0 to 1000000, found 1000000000"),
    ({"rope.scaling.yarn_log_multiplier": -1.0}, "YaRN log multiplier: expected 0 to"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[str(row[0]) for row in WRONG])
def test_metadata_that_does_not_fit_is_refused(
    loaded: Callable[[str], Model], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    model = loaded("deepseek3")
    model.metadata.update({f"deepseek2.{key}": value for key, value in change.items()})
    path = model.save(tmp_path / "wrong.gguf")
    with pytest.raises((ModelFormatError, UnsupportedModelError), match=message):
        Engine(path)
    with ModelFile(path) as file:
        reason = file.unsupported_reason() or ""
        assert str(path) in reason or reason.startswith("deepseek2.expert_weights_scale")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("deepseek3", {"rope_interleave": False}, "rope_interleave: expected None or True"),
        ("deepseek3", {"scoring_func": "softmax"}, "scoring_func: expected None or 'sigmoid'"),
        ("deepseek3", {"attention_bias": True}, "attention_bias: expected None or False"),
        ("deepseek3", {"num_key_value_heads": 1}, "num_key_value_heads: expected 2, as many"),
        ("deepseek3", {"n_group": 4}, "n_group: expected a divisor of 6 experts"),
        ("deepseek3", {"topk_group": 4}, "topk_group: expected at most the 3 groups"),
        ("deepseek3", {"topk_group": 1, "num_experts_per_tok": 3}, "topk_group: expected groups"),
        ("deepseek3", {"first_k_dense_replace": 3}, "first_k_dense_replace: expected 0 to 2"),
        ("deepseek3", {"kv_lora_rank": 0}, "kv_lora_rank: expected a positive integer"),
        ("deepseek3", {"quantization_config": {"quant_method": "fp8"}}, "found quant_method 'fp8'"),
        ("deepseek2", {"norm_topk_prob": True}, "norm_topk_prob: expected None or False"),
        ("deepseek2", {"topk_method": "noaux_tc"}, "topk_method: expected 'greedy' or"),
        ("glm4-flash", {"mlp_layer_types": ["sparse", "dense"]}, "mlp_layer_types: expected"),
        (
            "deepseek3",
            {"rope_parameters": {**YARN, "mscale": 9, "mscale_all_dim": 1}},
            "mscale_all_dim: expected more than what multiplies cosines",
        ),
    ],
)
def test_what_no_file_can_say_is_refused(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        ModelMapping({**config_of(name), **change})
