"""Every model family: converter and engine against logits that transformers computed.

tests/golden/make_goldens.py wrote the checkpoints and the logits; torch is not needed here.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import converters
from converters._families import FAMILIES
from converters._gguf_writer import Field
from converters._mapping import ModelMapping
from pyengine import ConversionError, Engine, ModelFormatError, UnsupportedModelError

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = sorted(path.parent.name for path in (GOLDEN / "families").glob("*/logits.npy"))
# Random weights are of one size: 4 bits leave more of them the fewer columns there are.
BOUNDS = {"f16": 0.01, "bf16": 0.03, "q8_0": 0.1, "q4_1": 0.8, "q4_0": 0.8}

Array = np.ndarray[Any, Any]
Converted = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder = tmp_path_factory.mktemp("families")

    def convert(name: str, dtype: str) -> Path:
        source, out = folder / name, folder / f"{name}-{dtype}.gguf"
        if not source.exists():
            shutil.copytree(GOLDEN / "families" / name, source)
            shutil.copy(GOLDEN / "llama-grouped-tied" / "tokenizer.json", source)
        if not out.exists():
            converters.convert(source, out, dtype=dtype)
        return out

    return convert


def tokens_of(name: str) -> list[int]:
    tokens: list[int] = json.loads((GOLDEN / "families" / name / "tokens.json").read_text("utf-8"))
    return tokens


def expected_of(name: str) -> Array:
    rows: Array = np.load(GOLDEN / "families" / name / "logits.npy")
    return rows


def test_every_architecture_has_a_golden() -> None:
    kinds = {
        json.loads((GOLDEN / "families" / name / "config.json").read_text("utf-8"))["model_type"]
        for name in NAMES
    }
    tested = {family.architecture for family in FAMILIES.values() if family.model_type in kinds}
    assert tested | {"llama"} == {family.architecture for family in FAMILIES.values()}


@pytest.mark.parametrize("name", NAMES)
def test_f32_logits_equal_those_of_transformers(converted: Converted, name: str) -> None:
    tokens, expected = tokens_of(name), expected_of(name)
    assert expected.std() > 0.8  # so that 1e-4 says something
    with Engine(converted(name, "f32"), n_threads=2) as engine:
        found = engine.logits(tokens)[-len(expected) :]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", NAMES)
def test_narrower_types_stay_near_the_original(converted: Converted, name: str, dtype: str) -> None:
    tokens, expected = tokens_of(name), expected_of(name)
    with Engine(converted(name, dtype), n_threads=2) as engine:
        found = engine.logits(tokens)[-len(expected) :]
    assert np.sqrt(np.mean((found - expected) ** 2)) / expected.std() < BOUNDS[dtype]


@pytest.mark.parametrize("kv_type", ["auto", "q8_0"])
@pytest.mark.parametrize("dtype", ["f32", "q4_0"])
@pytest.mark.parametrize("name", NAMES)
def test_no_bit_depends_on_how_a_text_is_cut(
    converted: Converted, name: str, dtype: str, kv_type: Any
) -> None:
    tokens = tokens_of(name)
    path = converted(name, dtype)
    with Engine(path, n_threads=1, kv_type=kv_type) as engine:
        expected = engine.logits(tokens)
    with Engine(path, n_threads=3, n_batch=7, kv_type=kv_type) as engine:
        session = engine.session()
        parts = [tokens[:1], tokens[1:34], tokens[34:70], *([t] for t in tokens[70:])]
        found = np.concatenate([session.feed(part, logits="all") for part in parts])
        assert np.array_equal(found, expected)
        # Tokens whose logits nobody wants leave the last layer in the middle of it.
        assert np.array_equal(engine.session().feed(tokens, logits="last")[-1], expected[-1])
        session.rewind(41)
        fork = session.fork()
        assert np.array_equal(fork.feed(tokens[41:], logits="all"), expected[41:])
        assert np.array_equal(session.feed(tokens[41:50], logits="all"), expected[41:50])


@pytest.mark.parametrize("name", NAMES)
def test_no_bit_depends_on_the_instruction_set(converted: Converted, name: str) -> None:
    tokens = tokens_of(name)
    with Engine(converted(name, "q8_0"), n_threads=1, isa="scalar") as engine:
        expected = engine.logits(tokens)
    with Engine(converted(name, "q8_0"), n_threads=2) as engine:
        assert np.array_equal(engine.logits(tokens), expected)


# ---- checkpoints of other kinds


def source_of(name: str, folder: Path) -> Path:
    """A copy of a golden that a test may change."""
    shutil.copytree(GOLDEN / "families" / name, folder)
    shutil.copy(GOLDEN / "llama-grouped-tied" / "tokenizer.json", folder)
    return folder


def read_safetensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of each tensor."""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    return {
        name: (row["dtype"], row["shape"], data[8 + size :][slice(*row["data_offsets"])])
        for name, row in header.items()
    }


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        at = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": at}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def tensors_of(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_a_text_model_inside_one_that_sees_is_the_same_model(
    converted: Converted, tmp_path: Path, prefix: str
) -> None:
    folder = source_of("gemma3", tmp_path / "wrapped")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.pop("architectures")
    wrapper = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": config}
    (folder / "config.json").write_text(json.dumps(wrapper))
    stored = read_safetensors(folder / "model.safetensors")
    renamed = {name.replace("model.", prefix, 1): row for name, row in stored.items()}
    renamed["vision_tower.x.weight"] = ("BF16", [4], bytes(8))
    write_safetensors(folder / "model.safetensors", renamed)
    converters.convert(folder, tmp_path / "out.gguf", dtype="f32")
    found, expected = tensors_of(tmp_path / "out.gguf"), tensors_of(converted("gemma3", "f32"))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name].data, expected[name].data) for name in found)


def test_what_qwen35_has_beside_its_text_is_left_out(converted: Converted, tmp_path: Path) -> None:
    folder = source_of("qwen35moe", tmp_path / "wrapped")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.pop("architectures")
    config["layer_types"], config["mtp_num_hidden_layers"] = (
        ["full_attention", "linear_attention"],
        1,
    )
    wrapper = {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "text_config": config}
    (folder / "config.json").write_text(json.dumps(wrapper))
    stored = read_safetensors(folder / "model.safetensors")
    for layer in range(2):  # as the original has them: all experts in one tensor, gates first
        at = f"model.layers.{layer}.mlp.experts."
        each = [
            [stored.pop(f"{at}{i}.{part}_proj.weight") for part in ("gate", "up", "down")]
            for i in range(3)
        ]
        gate_up = b"".join(gate[2] + up[2] for gate, up, _ in each)
        stored[at + "gate_up_proj"] = ("BF16", [3, 64, 32], gate_up)
        stored[at + "down_proj"] = ("BF16", [3, 32, 32], b"".join(row[2][2] for row in each))
    renamed = {
        name.replace("model.", "model.language_model.", 1): row for name, row in stored.items()
    }
    renamed["model.visual.x.weight"] = renamed["mtp.fc.weight"] = ("BF16", [4], bytes(8))
    write_safetensors(folder / "model.safetensors", renamed)
    converters.convert(folder, tmp_path / "out.gguf", dtype="f32")
    found, expected = tensors_of(tmp_path / "out.gguf"), tensors_of(converted("qwen35moe", "f32"))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name].data, expected[name].data) for name in found)


def with_fields(
    path: Path, source: Path, fields: dict[str, Any], more: tuple[str, ...] = ()
) -> Path:
    """The file with other metadata, None for none, and with more tensors."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "qwen35")
    for name, field in reader.fields.items():
        key = name.removeprefix("qwen35.")
        if name.startswith("GGUF.") or name == "general.architecture" or key in fields:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, inner)
    for key, value in fields.items():
        if isinstance(value, list):
            writer.add_array(f"qwen35.{key}", value)
        elif value is not None:
            writer.add_uint32(f"qwen35.{key}", value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    for name in more:
        writer.add_tensor(name, np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_layers_that_predict_further_tokens_are_passed_over(
    converted: Converted, tmp_path: Path
) -> None:
    source, tokens = converted("qwen35", "f32"), tokens_of("qwen35")
    path = with_fields(
        tmp_path / "more.gguf",
        source,
        {
            "block_count": 5,
            "nextn_predict_layers": 1,
            "attention.recurrent_layers": [True, True, True, False, False],
            "full_attention_interval": 4,
        },
        ("blk.4.attn_norm.weight", "blk.4.nextn.enorm.weight"),
    )
    with Engine(source, n_threads=1) as engine, Engine(path, n_threads=1) as more:
        assert np.array_equal(more.logits(tokens), engine.logits(tokens))
    with pytest.raises(UnsupportedModelError, match=r"blk\.5\.attn_norm.*expected only weights"):
        Engine(with_fields(tmp_path / "x.gguf", path, {}, ("blk.5.attn_norm.weight",)))


def test_a_period_says_which_layers_are_recurrent(converted: Converted, tmp_path: Path) -> None:
    source, tokens = converted("qwen35", "f32"), tokens_of("qwen35")
    with Engine(source, n_threads=1) as engine:
        expected = engine.logits(tokens)
    for period in (None, 4):
        fields = {"attention.recurrent_layers": None, "full_attention_interval": period}
        with Engine(with_fields(tmp_path / "p.gguf", source, fields), n_threads=1) as engine:
            assert np.array_equal(engine.logits(tokens), expected)


HUGE = 2**32 - 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ssm.conv_kernel": 0}, "tokens of the convolution: expected 1 to 16, found 0"),
        ({"ssm.conv_kernel": HUGE}, "tokens of the convolution: expected 1 to 16"),
        ({"ssm.conv_kernel": None}, "ssm.conv_kernel: expected a value"),
        ({"ssm.group_count": 0}, "key heads of the delta rule: expected 1 to 65536, found 0"),
        ({"ssm.group_count": HUGE}, "key heads of the delta rule"),
        ({"ssm.group_count": 3}, "expected value heads that are a multiple of the 3 key heads"),
        ({"ssm.time_step_rank": 0}, "value heads of the delta rule: expected 1 to 65536, found 0"),
        ({"ssm.time_step_rank": HUGE}, "value heads of the delta rule"),
        ({"ssm.state_size": 0}, "key length of the delta rule: expected 1 to 8388608, found 0"),
        ({"ssm.state_size": HUGE}, "key length of the delta rule"),
        (
            {"ssm.state_size": 8388608},
            "recurrent layers: expected states|expected shape|expected a",
        ),
        ({"ssm.inner_size": 0}, "values of the delta rule: expected 1 to 16777216, found 0"),
        ({"ssm.inner_size": HUGE}, "values of the delta rule"),
        ({"ssm.inner_size": 62}, "share 62 values, found 4"),
        ({"ssm.inner_size": 128}, "expected shape"),
        ({"nextn_predict_layers": 4}, "layers that predict: expected 0 to 3, found 4"),
        ({"nextn_predict_layers": HUGE}, "layers that predict: expected 0 to 3"),
        ({"attention.value_length": 8}, "value length: expected 16 to 16, found 8"),
        ({"attention.recurrent_layers": [True]}, "expected a flag for layer 1"),
        ({"attention.recurrent_layers": [False] * 4}, "expected a tensor"),
        ({"rope.dimension_sections": 2}, "dimension_sections: expected an array of four numbers"),
        ({"rope.dimension_sections": [1, 1, 0]}, "expected an array of four numbers"),
        ({"rope.dimension_sections": [1, 1, -1, 0]}, "expected an array of four numbers"),
        ({"rope.dimension_sections": [0, 0, 0, 0]}, "sections that share 2 pairs in turn, found 0"),
        ({"rope.dimension_sections": [1, 0, 1, 0]}, "that share 2 pairs in turn, found 1, 0, 1, 0"),
    ],
)
def test_sizes_of_linear_attention_that_cannot_be_are_refused(
    converted: Converted, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    path = with_fields(tmp_path / "bad.gguf", converted("qwen35", "f32"), fields)
    with pytest.raises((ModelFormatError, UnsupportedModelError), match=message):
        Engine(path)


def test_experts_in_mxfp4_keep_their_bits(tmp_path: Path) -> None:
    folder = source_of("gpt-oss", tmp_path / "packed")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    stored = read_safetensors(folder / "model.safetensors")
    rng = np.random.default_rng(3)
    weights: dict[str, Array] = {}
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    values = np.concatenate([values, -values])
    for name in [n for n in stored if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = stored.pop(name)[1]  # transposed
        blocks = rng.integers(0, 256, (experts, rows, columns // 32, 16), dtype=np.uint8)
        scales = rng.integers(122, 126, (experts, rows, columns // 32), dtype=np.uint8)
        for suffix, array in (("_blocks", blocks), ("_scales", scales)):
            stored[name + suffix] = ("U8", list(array.shape), array.tobytes())
        pairs = np.stack([values[blocks & 15], values[blocks >> 4]], axis=-1)
        scaled = (
            pairs.reshape(experts, rows, columns // 32, 32)
            * np.exp2(scales.astype(np.float32) - 127)[..., None]
        )
        weights[name] = scaled.reshape(experts, rows, columns)
    write_safetensors(folder / "model.safetensors", stored)
    out = tmp_path / "out.gguf"
    converters.convert(folder, out, dtype="f32")
    found = tensors_of(out)
    for layer in range(2):
        at = f"model.layers.{layer}.mlp.experts."
        for target, expected in (
            ("gate", weights[at + "gate_up_proj"][:, 0::2]),
            ("up", weights[at + "gate_up_proj"][:, 1::2]),
            ("down", weights[at + "down_proj"]),
        ):
            tensor = found[f"blk.{layer}.ffn_{target}_exps.weight"]
            assert tensor.tensor_type == gguf.GGMLQuantizationType.MXFP4
            assert np.array_equal(gguf.quants.dequantize(tensor.data, tensor.tensor_type), expected)
    with Engine(out, n_threads=2) as engine:
        assert np.isfinite(engine.logits(tokens_of("gpt-oss"))).all()


def test_experts_where_none_belong_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ModelMapping.fields
    more = Field("qwen2.expert_count", "u32", 4)
    monkeypatch.setattr(ModelMapping, "fields", lambda self: [*fields(self), more])
    folder = source_of("qwen2", tmp_path / "qwen2")
    converters.convert(folder, tmp_path / "out.gguf", dtype="f32")
    with pytest.raises(UnsupportedModelError, match="qwen2: expected a dense model, found a mix"):
        Engine(tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types: expected 2 times"),
        ("gemma2", {"layer_types": ["full_attention", "linear"]}, "layer_types: expected 2 times"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation: expected 'gelu_pytorch_tan"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention: expected"),
        ("gemma3", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping: expected None"),
        ("smollm3", {"no_rope_layers": [1, 2]}, "no_rope_layers: expected a list of 0 and 1"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers: expected 2 numbers"),
        ("qwen3moe", {"mlp_only_layers": [1]}, "mlp_only_layers: expected None or"),
        ("qwen3moe", {"decoder_sparse_step": 2}, "decoder_sparse_step: expected None or 1"),
        ("qwen3moe", {"num_experts_per_tok": 9}, "num_experts_per_tok: expected at most the 4"),
        ("qwen35", {"layer_types": ["full_attention"]}, "layer_types: expected 4 times linear_att"),
        ("qwen35", {"layer_types": [[]] * 4}, "layer_types: expected 4 times linear_attention or"),
        ("qwen35", {"attention_bias": True}, "attention_bias: expected None or False"),
        (
            "qwen35",
            {"linear_num_value_heads": 3},
            "expected a multiple of the 2 key heads",
        ),
        (
            "qwen35",
            {"linear_conv_kernel_dim": 0},
            "linear_conv_kernel_dim: expected a posi",
        ),
        (
            "qwen35",
            {"rope_parameters": {"mrope_section": [1, 1]}},
            "expected three numbers that",
        ),
        (
            "qwen35",
            {"rope_parameters": {"mrope_section": [2, 0, 0], "partial_rotary_factor": 0.25}},
            "mrope_section: expected three numbers that share out 2 pairs in turn",
        ),
        ("qwen3next", {"mlp_only_layers": [1]}, "mlp_only_layers: expected None or"),
        ("qwen35", {"intermediate_size": None}, "intermediate_size: expected a positive integer"),
        ("gpt-oss", {"swiglu_limit": 5.0}, "swiglu_limit: expected None or 7.0"),
        ("gpt-oss", {"quantization_config": {"quant_method": "fp8"}}, "found quant_method 'fp8'"),
        ("phi3", {"rope_parameters": {"rope_type": "linear"}}, "rope_type: expected 'default' or"),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "rope_type: expected 'default' in windowed layers",
        ),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "longrope", "long_factor": [1.0]}},
            "long_factor: expected 4 positive numbers",
        ),
    ],
)
def test_what_no_file_can_say_is_refused(name: str, change: dict[str, Any], message: str) -> None:
    config = json.loads((GOLDEN / "families" / name / "config.json").read_text("utf-8"))
    with pytest.raises(ConversionError, match=message):
        ModelMapping({**config, **change})
