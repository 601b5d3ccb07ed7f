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
import quantizers
from converters._families import FAMILIES
from converters._gguf_writer import Field
from converters._mapping import ModelMapping
from pyengine import (
    ConversionError,
    Engine,
    ModelFile,
    ModelFormatError,
    UnsupportedModelError,
)
from quantizers._weights import Weights

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


@pytest.mark.parametrize("name", NAMES)
def test_quantizing_a_converted_file_is_converting_to_that_type(
    name: str, converted: Converted, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    quantizers.quantize(converted(name, "f32"), out, dtype="q8_0", method="plain")
    with ModelFile(out) as file, ModelFile(converted(name, "q8_0")) as other:
        ours, theirs = Weights(file), Weights(other)
        assert [tensor.dtype for tensor in file.tensors] == [t.dtype for t in other.tensors]
        for tensor in file.tensors:
            assert (ours.raw(tensor.name) == theirs.raw(tensor.name)).all(), tensor.name
        assert file.unsupported_reason() is None


def test_every_architecture_has_a_golden() -> None:
    kinds = {
        json.loads((GOLDEN / "families" / name / "config.json").read_text("utf-8"))["model_type"]
        for name in NAMES
    }
    tested = {family.architecture for family in FAMILIES.values() if family.model_type in kinds}
    assert tested | {"llama"} == {family.architecture for family in FAMILIES.values()}


@pytest.mark.parametrize("name", NAMES)
def test_every_family_quantizes_with_feedback(
    name: str, converted: Converted, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    words = rng.choice(["the", "little", "fox", "saw", "a", "big", "tree"], 3000)
    text, out = tmp_path / "text.txt", tmp_path / "out.gguf"
    text.write_text(" ".join(words))

    def quantize() -> quantizers.Report:
        return quantizers.quantize(
            converted(name, "f32"), out, dtype="q8_0", calibration=[text], tokens=2048
        )

    if name == "gemma4":
        with pytest.raises(UnsupportedModelError, match="share keys and values"):
            quantize()
        assert not list(tmp_path.glob("out*"))
        return
    report = quantize()
    assert any("blk.0." in matrix for matrix in report.errors)
    tokens, expected = tokens_of(name), expected_of(name)
    with Engine(out, n_threads=2) as engine:
        found = engine.logits(tokens)[-len(expected) :]
    # The weights are random, and so are the experts that a rounding makes the router choose.
    assert np.sqrt(np.mean((found - expected) ** 2)) / expected.std() < 0.3


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
def test_no_bit_depends_on_whose_logits_are_wanted(converted: Converted, name: str) -> None:
    tokens = tokens_of(name)
    with Engine(converted(name, "q8_0"), n_threads=2, n_batch=16) as engine:
        expected = engine.logits(tokens)
        session = engine.session()
        found = [session.feed(tokens[:38]), session.feed(tokens[38:70], logits="none")]
        assert np.array_equal(found[0][-1], expected[37])
        assert np.array_equal(session.feed(tokens[70:])[-1], expected[-1])


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


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("gemma3", "language_model.model."),
        ("gemma3", "model.language_model."),
        ("gemma4", "model.language_model."),
    ],
)
def test_a_text_model_inside_one_that_sees_is_the_same_model(
    converted: Converted, tmp_path: Path, name: str, prefix: str
) -> None:
    folder = source_of(name, tmp_path / "wrapped")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.pop("architectures")
    outer = name.replace("gemma", "Gemma") + "ForConditionalGeneration"
    wrapper = {"architectures": [outer], "text_config": config}
    (folder / "config.json").write_text(json.dumps(wrapper))
    stored = read_safetensors(folder / "model.safetensors")
    renamed = {tensor.replace("model.", prefix, 1): row for tensor, row in stored.items()}
    for left_out in ("vision_tower.x", "model.embed_vision.x", "model.audio_tower.x"):
        renamed[f"{left_out}.weight"] = ("BF16", [4], bytes(8))
    write_safetensors(folder / "model.safetensors", renamed)
    converters.convert(folder, tmp_path / "out.gguf", dtype="f32")
    found, expected = tensors_of(tmp_path / "out.gguf"), tensors_of(converted(name, "f32"))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key].data, expected[key].data) for key in found)


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


# ---- layers of different sizes


def rewritten(path: Path, out: Path, change: Callable[[dict[str, Array]], None]) -> Path:
    """The F32 file with other tensors."""
    reader = gguf.GGUFReader(path)
    arrays = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    change(arrays)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            value, kinds = field.contents(), field.types
            writer.add_key_value(key, value, kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def logits_of(path: Path, tokens: list[int]) -> Array:
    with Engine(path, n_threads=1) as engine:
        return engine.logits(tokens)


def test_experts_in_one_tensor_or_in_two_are_the_same_model(
    converted: Converted, tmp_path: Path
) -> None:
    def split(arrays: dict[str, Array]) -> None:
        for name in [name for name in arrays if "gate_up" in name]:
            gate, up = np.split(arrays.pop(name), 2, axis=1)
            arrays[name.replace("gate_up", "gate")] = gate.copy()
            arrays[name.replace("gate_up", "up")] = up.copy()

    def both(arrays: dict[str, Array]) -> None:
        up = next(array for name, array in arrays.items() if "gate_up" in name)
        arrays["blk.1.ffn_up_exps.weight"] = np.split(up, 2, axis=1)[1].copy()

    tokens, path = tokens_of("gemma4-experts"), converted("gemma4-experts", "f32")
    other = rewritten(path, tmp_path / "two.gguf", split)
    assert np.array_equal(logits_of(other, tokens), logits_of(path, tokens))
    with pytest.raises(ModelFormatError, match=r"gate_up_exps.weight: expected this tensor or its"):
        Engine(rewritten(path, tmp_path / "both.gguf", both))
    missing = "blk.0.attn_v.weight: expected a tensor, since the layer has a window"
    with pytest.raises(ModelFormatError, match=missing):
        Engine(rewritten(path, tmp_path / "v.gguf", lambda arrays: arrays.pop(missing[:19])))


def test_keys_that_no_layer_reads_change_nothing(converted: Converted, tmp_path: Path) -> None:
    path, tokens = converted("gemma4", "f32"), tokens_of("gemma4")

    def more(arrays: dict[str, Array]) -> None:
        for part in ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight"):
            arrays[f"blk.3.{part}"] = arrays[f"blk.1.{part}"]

    other = rewritten(path, tmp_path / "more.gguf", more)
    assert np.array_equal(logits_of(other, tokens), logits_of(path, tokens))
    folder = source_of("gemma4", tmp_path / "checkpoint")
    stored = read_safetensors(folder / "model.safetensors")
    for part in ("k_proj", "v_proj", "k_norm"):
        name = "model.layers.{}.self_attn." + part + ".weight"
        stored[name.format(3)] = stored[name.format(1)]
    write_safetensors(folder / "model.safetensors", stored)
    converters.convert(folder, tmp_path / "same.gguf", dtype="f32")
    assert tensors_of(tmp_path / "same.gguf").keys() == tensors_of(path).keys()


def test_only_what_is_read_counts(converted: Converted) -> None:
    with Engine(converted("gemma4", "f32"), kv_type="f32") as engine:
        info = engine.info
        sizes = {tensor.name: tensor.n_bytes for tensor in engine.file.tensors}
    looked_up = sizes["per_layer_token_embd.weight"]
    # The embedding is read as the head.
    assert info.decode_bytes == info.weight_bytes - looked_up == sum(sizes.values()) - looked_up
    # Two of four layers have keys and values: one head of 16 and one of 32 dimensions.
    assert info.kv_page_bytes == 32 * 4 * 2 * (16 + 32)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attention.shared_kv_layers", 4, "layers without keys and values: expected 0 to 3"),
        ("attention.shared_kv_layers", 3, "layer 1: expected a layer below 1 with no window"),
        ("attention.key_length_swa", 0, "key length in windows: expected 1 to"),
        ("attention.value_length_swa", 2**31, "value length in windows: expected 1 to"),
        ("attention.value_length_swa", 24, "blk.0.attn_v.weight: expected shape"),
        ("rope.dimension_count_swa", 18, "rotated dimensions in windows: expected 0 to 16"),
        ("rope.dimension_count_swa", 15, "rotated dimensions: expected an even number, found 15"),
        ("rope.dimension_count", 16, "rope_freqs.weight: expected shape"),
        ("embedding_length_per_layer_input", 2**31, "per-layer input length: expected 0 to"),
        ("embedding_length_per_layer_input", 0, "per_layer_token_embd.weight: expected only"),
        (
            "feed_forward_length",
            [64, 64, 128],
            "32-bit number for each of 4 layers, found an array of 3",
        ),
        ("feed_forward_length", [64, 64, 128, 0], "feed-forward length: expected 1 to"),
        ("feed_forward_length", [64, 64, 64, 64], "blk.2.ffn_gate.weight: expected shape"),
        ("attention.head_count_kv", [1, 1, 1, 0], "number of KV heads: expected 1 to 2, found 0"),
        ("attention.head_count_kv", [1, 1, 1, 2], "layer 3: expected a layer below 2 with no"),
        ("attention.head_count_kv", [1, 2, 1, 2], "blk.1.attn_k.weight: expected shape"),
        ("attention.head_count_kv", [2**31, 1, 1, 1], "number of KV heads: expected 1 to 2"),
        ("attention.sliding_window_pattern", [False] * 4, "blk.0.attn_q.weight: expected shape"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, message: str
) -> None:
    fields = ModelMapping.fields
    kind = "bool" if key.endswith("pattern") else "u32"

    def changed(self: ModelMapping) -> list[Field]:
        kept = [field for field in fields(self) if field.key != f"gemma4.{key}"]
        return [*kept, Field(f"gemma4.{key}", kind, value)]  # type: ignore[arg-type]

    monkeypatch.setattr(ModelMapping, "fields", changed)
    folder = source_of("gemma4", tmp_path / "gemma4")
    converters.convert(folder, tmp_path / "out.gguf", dtype="f32")
    with pytest.raises((ModelFormatError, UnsupportedModelError), match=message):
        Engine(tmp_path / "out.gguf")


def test_both_spellings_of_sizes_are_read() -> None:
    config = json.loads((GOLDEN / "families/gemma4-experts/config.json").read_text("utf-8"))
    assert config.pop("per_layer_config") == {"1": {"head_dim": 32, "num_key_value_heads": 1}}
    mapping = ModelMapping({**config, "global_head_dim": 32, "num_global_key_value_heads": 1})
    fields = {field.key: field.value for field in mapping.fields()}
    assert fields["gemma4.attention.key_length"] == 32
    assert fields["gemma4.attention.key_length_swa"] == 16
    assert fields["gemma4.attention.head_count_kv"] == [2, 1]
    plain = ModelMapping({**config, "global_head_dim": 32, "attention_k_eq_v": False})
    assert {f.key: f.value for f in plain.fields()}["gemma4.attention.head_count_kv"] == 2


def test_gemma4_has_its_tokenizer_as_merges(tmp_path: Path) -> None:
    folder = source_of("gemma4", tmp_path / "gemma4")
    mark = "\u2581"
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += [mark, "a", "b", f"{mark}a", "ab", f"{mark}ab", "<|tool_call>", "<|turn>"]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": mark}
    words = {
        "added_tokens": [
            {"id": i, "content": text, "special": True}
            for i, text in enumerate(pieces)
            if i < 4 or text.startswith("<|")
        ],
        "normalizer": replace,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "unk_token": "<unk>",
            "fuse_unk": True,
            "vocab": {text: i for i, text in enumerate(pieces)},
            # In an order that no scores could follow.
            "merges": [[mark, "a"], ["a", "b"], [f"{mark}a", "b"]],
        },
    }
    for entry in words["added_tokens"]:
        entry |= {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    converters.convert(folder, tmp_path / "out.gguf", dtype="f32")
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "gemma4"
    assert fields["tokenizer.ggml.merges"].contents() == [f"{mark} a", "a b", f"{mark}a b"]
    types = fields["tokenizer.ggml.token_type"].contents()
    assert [types[pieces.index(t)] for t in ("<unk>", "<0x41>", "<|tool_call>", "<|turn>")] == [
        2,
        6,
        4,
        3,
    ]
    with Engine(tmp_path / "out.gguf") as engine:
        ids = engine.tokenize("ab abc", add_special=False)
        assert ids == [pieces.index(t) for t in ("ab", f"{mark}ab", "<0x63>")]
    words["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ConversionError, match=r"found normalizer .*NFC"):
        converters.convert(folder, tmp_path / "other.gguf", dtype="f32")


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
        ("gemma4", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention: expected"),
        ("gemma4", {"num_kv_shared_layers": 3}, "num_kv_shared_layers: expected a layer of each"),
        ("gemma4", {"num_kv_shared_layers": -1}, "num_kv_shared_layers: expected a number of la"),
        ("gemma4", {"vocab_size_per_layer_input": 7}, "vocab_size_per_layer_input: expected voc"),
        ("gemma4", {"rope_parameters": None}, "rope_parameters: expected settings of full_atten"),
        (
            "gemma4",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}},
            "rope_type: expected 'default' or 'proportional'",
        ),
        (
            "gemma4",
            {"per_layer_config": {"1": {"head_dim": 32}, "3": {"head_dim": 16}}},
            "per_layer_config: expected one head_dim and one num_key_value_heads",
        ),
        (
            "gemma4",
            {"per_layer_config": {"0": {"head_dim": 32}}},
            "head_dim: expected head_dim and num_key_value_heads of layers without a window",
        ),
        (
            "gemma4",
            {"per_layer_config": {"1": {"sliding_window": 5}}},
            "sliding_window: expected head_dim and num_key_value_heads of layers without",
        ),
        ("gemma4-experts", {"top_k_experts": 4}, "top_k_experts: expected at most the 3 experts"),
        ("gemma4-experts", {"num_experts": None}, "num_local_experts: expected a positive inte"),
    ],
)
def test_what_no_file_can_say_is_refused(name: str, change: dict[str, Any], message: str) -> None:
    config = json.loads((GOLDEN / "families" / name / "config.json").read_text("utf-8"))
    with pytest.raises(ConversionError, match=message):
        ModelMapping({**config, **change})
