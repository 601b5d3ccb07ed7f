"""Checkpoints that are quantized already: what becomes of each number, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import packers
import pytest
from numpy_llama import NumpyLlama
from packers import Array, Stored
from quantized import (
    AWQ,
    BNB,
    FFN,
    FP8,
    GPTQ,
    HEADS,
    LAYERS,
    Q_PROJ,
    VOCAB,
    WIDTH,
    Json,
    Packer,
    Source,
    groups_of,
    packing,
)
from test_families import read_safetensors, source_of, tensors_of

import converters
from converters import __main__ as cli
from converters._encode import Q4_0, Q4_1, Q5_0, Q8_0
from converters._grid import Grid, fits
from pyengine import ArgumentError, ConversionError, Engine


def decoded(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    found = tensors_of(path)
    return (
        {n: gguf.quants.dequantize(t.data, t.tensor_type) for n, t in found.items()},
        {n: t.tensor_type.name for n, t in found.items()},
    )


EXACT: dict[str, tuple[Json, Packer, str]] = {
    "gptq": (GPTQ, packing("gptq"), "Q4_0"),
    "gptq 32": ({**GPTQ, "group_size": 32}, packing("gptq", size=32), "Q4_0"),
    "gptq 64": ({**GPTQ, "group_size": 64}, packing("gptq", size=64), "Q4_0"),
    "gptq rows": ({**GPTQ, "group_size": -1}, packing("gptq", size=-1), "Q4_0"),
    "gptq asymmetric": (GPTQ, packing("gptq", symmetric=False), "Q5_0"),
    "gptq_v2": (
        {**GPTQ, "checkpoint_format": "gptq_v2"},
        packing("gptq", less_one=False, symmetric=False),
        "Q5_0",
    ),
    "gptq 8 bits": ({**GPTQ, "bits": 8}, packing("gptq", bits=8), "Q8_0"),
    "gptq 3 bits": ({**GPTQ, "bits": 3}, packing("gptq", bits=3, symmetric=False), "Q4_0"),
    "gptq 2 bits": ({**GPTQ, "bits": 2}, packing("gptq", bits=2, symmetric=False), "Q4_0"),
    "gptq whole blocks in another order": (
        {**GPTQ, "group_size": 32, "desc_act": True},
        packing("gptq", size=32, order="blocks"),
        "Q4_0",
    ),
    "awq": (AWQ, packing("awq"), "Q5_0"),
    "awq 32": ({**AWQ, "group_size": 32}, packing("awq", size=32), "Q5_0"),
    "awq zeros in the middle": (AWQ, packing("awq", symmetric=True), "Q4_0"),
    "compressed": (groups_of("pack-quantized", num_bits=4), packing("compressed"), "Q4_0"),
    "compressed asymmetric": (
        groups_of("pack-quantized", num_bits=4),
        packing("compressed", symmetric=False, size=32),
        "Q5_0",
    ),
    "compressed rows of 8 bits": (
        groups_of("pack-quantized", num_bits=8),
        packing("compressed", bits=8, size=-1),
        "Q8_0",
    ),
    "compressed bytes": (
        groups_of("int-quantized", num_bits=8),
        packing("compressed", bits=8, size=-1, words=False),
        "Q8_0",
    ),
    "compressed zeros in bytes": (
        groups_of("pack-quantized", num_bits=4),
        packing("compressed", symmetric=False, size=64, zeros_packed=False),
        "Q5_0",
    ),
    "fp8 with powers of two": (FP8, packing("fp8", powers=True), "BF16"),
    "float-quantized in rectangles": (
        groups_of("float-quantized", num_bits=8, type="float", block_structure=[64, 128]),
        packing("fp8", block=(64, 128), powers=True, scale="weight_scale"),
        "BF16",
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_every_weight_is_the_checkpoints_bit_for_bit(tmp_path: Path, name: str) -> None:
    config, packer, kind = EXACT[name]
    source = Source(config, packer)
    out = tmp_path / "out.gguf"
    summary = converters.convert(source.save(tmp_path / "source"), out)
    found, kinds = decoded(out)
    for target, weights in source.weights.items():
        assert kinds[target] == kind
        assert np.array_equal(found[target], weights), target
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "BF16"
    assert [item.name for item in summary.imports] == list(source.weights)
    assert all(item.exact and item.written == kind for item in summary.imports)
    assert f"{config['quant_method']}: 14 of 14 quantized tensors are exact" in summary.table()
    assert "not exact" not in summary.table()


NEAR: dict[str, tuple[Json, Packer, str, float]] = {
    "gptq desc_act": (
        {**GPTQ, "group_size": 32, "desc_act": True},
        packing("gptq", size=32, order="scattered"),
        "Q8_0",
        5e-3,
    ),
    "compressed actorder": (
        groups_of("pack-quantized", num_bits=4),
        packing("compressed", size=64, order="scattered"),
        "Q8_0",
        5e-3,
    ),
    "LLM.int8": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        packing("llm_int8"),
        "Q8_0",
        2**-11,
    ),
    "nf4": (BNB, packing("nf4"), "BF16", 2**-8),
    "nf4 in one step": (BNB, packing("nf4", nested=False, dtype="float16"), "F16", 2**-11),
    "fp8": (FP8, packing("fp8"), "BF16", 2**-8),
    "fp8 of one scale": (
        {"quant_method": "fp8", "weight_block_size": None},
        packing("fp8", block=None),
        "BF16",
        2**-8,
    ),
    "fbgemm_fp8": (
        {"quant_method": "fbgemm_fp8"},
        packing("fp8", block=None, per_row=True, scale="weight_scale"),
        "BF16",
        2**-8,
    ),
    "compressed bytes with zeros": (
        groups_of("int-quantized", num_bits=8),
        packing("compressed", bits=8, size=-1, words=False, symmetric=False),
        "Q8_0",
        5e-3,
    ),
    "float-quantized": (
        groups_of("float-quantized", num_bits=8, type="float"),
        packing("fp8", block=None, per_row=True, scale="weight_scale"),
        "BF16",
        2**-8,
    ),
}


@pytest.mark.parametrize("name", NEAR)
def test_what_no_block_holds_is_rounded_and_the_summary_says_how_far(
    tmp_path: Path, name: str
) -> None:
    config, packer, kind, bound = NEAR[name]
    source = Source(config, packer)
    out = tmp_path / "out.gguf"
    summary = converters.convert(source.save(tmp_path / "source"), out)
    found, kinds = decoded(out)
    for item in summary.imports:
        weights = source.weights[item.name]
        error = found[item.name] - weights
        assert kinds[item.name] == item.written == kind
        assert not item.exact
        assert item.differing == np.count_nonzero(error)
        assert item.max_error == pytest.approx(np.abs(error).max() / np.abs(weights).max())
        assert item.rms_error == pytest.approx(np.sqrt((error**2).sum() / (weights**2).sum()), 1e-4)
        assert item.rms_error < bound
        assert f"not exact: {item.name}: {kind} of {item.stored}" in summary.table()
    assert "0 of 14 quantized tensors are exact" in summary.table()
    exact = tmp_path / "exact.gguf"
    assert all(
        item.exact for item in converters.convert(tmp_path / "source", exact, dtype="f32").imports
    )
    for target, weights in source.weights.items():
        assert np.array_equal(decoded(exact)[0][target], weights)


@pytest.mark.parametrize("name", ["gptq", "gptq asymmetric", "awq", "compressed", *NEAR])
def test_logits_are_those_of_the_checkpoints_weights(tmp_path: Path, name: str) -> None:
    config, packer = (EXACT.get(name) or NEAR[name])[:2]
    source = Source(config, packer)
    out = tmp_path / "out.gguf"
    converters.convert(
        source.save(tmp_path / "source"), out, dtype="auto" if name in EXACT else "f32"
    )
    with_key = NumpyLlama(out, engine_rounding=True)
    with_key._meta["llama.attention.key_length"] = WIDTH // HEADS
    with_key._weights |= {n: w.astype(np.float64) for n, w in source.weights.items()}
    errors = []
    with Engine(out, n_threads=2, kv_type="f32") as engine:
        for seed in range(12):
            tokens = list(np.random.default_rng(seed).integers(0, VOCAB - 40, 3))
            expected = with_key.logits(tokens)
            assert expected.std() > 1
            errors.append(np.abs(engine.logits(tokens) - expected).max())
    # See test_engine.py: now and then the two fall on two sides of a rounding boundary.
    assert np.median(errors) < 1e-4


def test_a_type_that_is_asked_for_keeps_the_integers_where_it_can(tmp_path: Path) -> None:
    source = Source(AWQ, packing("awq"))
    folder = source.save(tmp_path / "source")
    for dtype, kept, bound in (("q8_0", True, 0.0), ("q4_1", True, 1e-3), ("q4_0", False, 0.2)):
        summary = converters.convert(folder, tmp_path / f"{dtype}.gguf", dtype=dtype)
        kinds = decoded(tmp_path / f"{dtype}.gguf")[1]
        assert kinds["token_embd.weight"] == "Q8_0"
        for item in summary.imports:
            assert item.written == dtype.upper()
            assert item.kept == kept
            assert item.rms_error <= bound


def test_each_row_keeps_its_integers_by_itself(tmp_path: Path) -> None:
    """So that nothing depends on how many rows are read at a time."""
    source = Source(AWQ, packing("awq"))
    # Zero points of one group a row; the words' first number is the first row's.
    words = source.stored["model.layers.0.mlp.up_proj.qzeros"][1]
    middle = np.flatnonzero((words[0].view(np.uint32) & 15) == 8) * 8
    assert 0 < len(middle) < FFN // 8
    out = tmp_path / "out.gguf"
    summary = converters.convert(source.save(tmp_path / "source"), out, dtype="q4_0")
    found, weights = (w["blk.0.ffn_up.weight"] for w in (decoded(out)[0], source.weights))
    assert np.array_equal(found[middle], weights[middle])
    exact = int((found == weights).all(axis=1).sum())
    assert len(middle) <= exact < FFN
    (item,) = [item for item in summary.imports if item.name == "blk.0.ffn_up.weight"]
    assert not item.kept


def test_one_matrix_may_have_another_type(tmp_path: Path) -> None:
    folder = Source(GPTQ, packing("gptq")).save(tmp_path / "source")
    out = tmp_path / "out.gguf"
    converters.convert(folder, out, tensor_types={"blk.*.ffn_down": "q6_k"})
    kinds = decoded(out)[1]
    assert kinds["blk.0.ffn_down.weight"] == "Q6_K"
    assert kinds["blk.0.ffn_up.weight"] == "Q4_0"


def test_scales_that_16_bits_do_not_hold_are_counted(tmp_path: Path) -> None:
    source = Source(groups_of("pack-quantized", num_bits=4), packing("compressed"))
    name = "model.layers.1.mlp.up_proj.weight_scale"
    scales = (source.stored[name][1].astype(np.uint32) << 16).view(np.float32)
    scales[7, 0] = 1.1641532e-08 * 1.5  # below what 16 bits reach, in bf16's steps
    source.stored[name] = packers.bf16((scales.view(np.uint32) & 0xFFFF0000).view(np.float32))
    summary = converters.convert(source.save(tmp_path / "source"), tmp_path / "out.gguf")
    (item,) = [item for item in summary.imports if not item.exact]
    assert (item.name, item.written, item.kept) == ("blk.1.ffn_up.weight", "Q4_0", True)
    assert 0 < item.differing <= WIDTH
    assert item.max_error < 1e-5


def test_the_order_of_types() -> None:
    groups = np.repeat([0, 1], 32)
    scales = np.full((2, 2), 0.5, np.float32)

    def of(zeros: int, codes: tuple[int, int], scale: float = 1.0) -> Any:
        return fits(scales * np.float32(scale), np.full((2, 2), zeros, np.int16), groups, codes)

    everything = {Q4_0: True, Q5_0: True, Q8_0: True, Q4_1: True}
    assert of(8, (0, 15)) == everything
    assert of(8, (0, 15), 1.0001) == dict.fromkeys(everything, False)
    assert of(7, (0, 15)) == {Q5_0: True, Q8_0: True, Q4_1: True}
    # 0.5009765625 has eleven bits, seven times it has thirteen.
    assert of(7, (0, 15), 1.001953125) == {Q5_0: True, Q8_0: True, Q4_1: False}
    assert of(0, (0, 15)) == {Q5_0: True, Q8_0: True, Q4_1: True}
    assert of(128, (0, 255)) == {Q8_0: True}
    assert of(127, (0, 255)) == {}
    assert of(8, (0, 15), 3e38) == {}
    assert fits(scales, np.full((2, 2), 8), np.roll(groups, 1), (0, 15)) == {}


def test_codes_of_8_bits_are_looked_at_where_zeros_are_elsewhere(tmp_path: Path) -> None:
    for name, low, kind in (("a", 20, "Q8_0"), ("b", 0, "Q8_0")):
        source = Source({**GPTQ, "bits": 8}, packing("gptq", bits=8))
        for key, (_, array) in source.stored.items():
            if key.endswith("qweight"):
                np.maximum(array.view(np.uint8), low, out=array.view(np.uint8))
                np.minimum(array.view(np.uint8), 200, out=array.view(np.uint8))
            if key.endswith("qzeros"):
                array.view(np.uint8)[:] = 129 + 10 - 1
        folder = source.save(tmp_path / name)
        summary = converters.convert(folder, tmp_path / f"{name}.gguf")
        assert {item.written for item in summary.imports} == {kind}
        # From 20 to 200 around 139 a signed byte has room; from 0 to 200 it has none.
        assert all(item.exact == item.kept == (low == 20) for item in summary.imports)


@pytest.mark.parametrize("kind", [Q4_0, Q4_1, Q5_0, Q8_0])
def test_blocks_hold_every_code_there_is(kind: Any) -> None:
    limits = {Q4_0: (8, 16), Q4_1: (3, 16), Q5_0: (16, 32), Q8_0: (128, 256)}
    zero, count = limits[kind]
    codes = np.arange(512, dtype=np.int16).reshape(2, 256) % count
    zeros = np.full((2, 8), zero, np.int16)
    scales = np.exp2(np.arange(16, dtype=np.float32) - 8).reshape(2, 8)
    grid = Grid(codes, scales, zeros, np.arange(256) // 32)
    made = grid.blocks(kind)
    assert made is not None
    blocks, held = made
    assert held.all()
    found = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind.name])
    expected = np.repeat(scales, 32, axis=1) * (codes - zero)
    assert np.array_equal(found, expected.astype(np.float32))
    assert np.array_equal(grid.floats(), expected.astype(np.float32))


def test_scales_and_minimums_beyond_16_bits_are_not_written() -> None:
    codes, groups = np.full((2, 32), 9, np.int16), np.zeros(32, np.int64)
    zeros = np.array([[8], [1]], np.int16)
    for scale, held in ((1e4, {Q4_1: [False, True]}), (1e5, {Q8_0: [False] * 2})):
        grid = Grid(codes, np.full((2, 1), scale, np.float32), zeros, groups)
        for kind, expected in held.items():
            made = grid.blocks(kind)
            assert made is not None
            assert made[1].tolist() == expected


FAMILIES = [
    "mixtral",
    "phi3",
    "qwen3moe",
    "qwen3next",
    "qwen35",
    "deepseek2",
    "deepseek3",
    "gemma3",
]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", ["auto", "f32"])
def test_rows_go_where_plain_rows_go(tmp_path: Path, name: str, dtype: str) -> None:
    """Whatever a family does to rows and columns, quantized ones take the same way."""
    plain, quantized = (source_of(name, tmp_path / kind) for kind in ("plain", "quantized"))
    rng = np.random.default_rng(2)
    floats: Stored = {}
    packed: Stored = {}
    count = 0
    for key, (stored_dtype, shape, data) in read_safetensors(plain / "model.safetensors").items():
        item = "<u2" if stored_dtype in ("BF16", "F16") else "<u4"
        array = np.frombuffer(data, item).reshape(shape)
        floats[key] = packed[key] = (stored_dtype, array)
        keep = ("embed", "lm_head", "router", "mlp.gate.", "conv1d", "shared_expert_gate")
        if key.endswith(".weight") and len(shape) == 2 and not any(k in key for k in keep):
            if shape[0] % 8 or shape[1] % 8:
                continue
            size = 32 if shape[1] % 32 == 0 else shape[1]
            parts, weights = packers.gptq(rng, *shape, size=size, symmetric=False)
            floats[key] = ("F32", weights)
            del packed[key]
            packed |= {f"{key.removesuffix('weight')}{n}": part for n, part in parts.items()}
            count += 1
    (plain / "model.safetensors").write_bytes(packers.safetensors(floats))
    (quantized / "model.safetensors").write_bytes(packers.safetensors(packed))
    config = json.loads((quantized / "config.json").read_text("utf-8"))
    config["quantization_config"] = {**GPTQ, "group_size": 32}
    (quantized / "config.json").write_text(json.dumps(config))
    converters.convert(plain, tmp_path / "plain.gguf", dtype="f32")
    summary = converters.convert(quantized, tmp_path / "quantized.gguf", dtype=dtype)
    expected, found = decoded(tmp_path / "plain.gguf")[0], decoded(tmp_path / "quantized.gguf")[0]
    exact = {item.name for item in summary.imports if item.exact}
    assert count > 4
    assert len(exact) >= (len(summary.imports) if dtype == "f32" else 4)
    for item in summary.imports:
        if item.exact:
            assert np.array_equal(found[item.name], expected[item.name]), item.name
        else:
            assert np.abs(found[item.name] - expected[item.name]).max() < 0.02
            assert item.written in ("Q8_0", "F16")  # F16 where rows are not whole blocks


def test_biases_of_nothing_are_left_out_and_others_refused(tmp_path: Path) -> None:
    source = Source(GPTQ, packing("gptq"))
    name = "model.layers.0.mlp.down_proj.bias"
    source.stored[name] = ("F16", np.zeros(WIDTH, np.float16))
    converters.convert(source.save(tmp_path / "source"), tmp_path / "out.gguf")
    assert "blk.0.ffn_down.bias" not in tensors_of(tmp_path / "out.gguf")
    source.stored[name][1][3] = 1
    with pytest.raises(ConversionError, match=r"down_proj\.bias': expected only tensors of this"):
        converters.convert(source.save(tmp_path / "other"), tmp_path / "other.gguf")


def test_older_files_and_keys_say_the_same(tmp_path: Path) -> None:
    source = Source(GPTQ, packing("gptq"))
    converters.convert(source.save(tmp_path / "new"), tmp_path / "new.gguf", name="m")
    del source.config["quantization_config"]
    folder = source.save(tmp_path / "old")
    stated = {"bits": 4, "group_size": 128, "desc_act": False, "sym": True}
    (folder / "quantize_config.json").write_text(json.dumps(stated))
    converters.convert(folder, tmp_path / "old.gguf", name="m")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()

    source = Source(groups_of("pack-quantized", num_bits=4), packing("compressed"))
    converters.convert(source.save(tmp_path / "c1"), tmp_path / "c1.gguf", name="m")
    config = source.config.pop("quantization_config")
    del config["quant_method"]
    source.config["compression_config"] = config
    converters.convert(source.save(tmp_path / "c2"), tmp_path / "c2.gguf", name="m")
    assert (tmp_path / "c1.gguf").read_bytes() == (tmp_path / "c2.gguf").read_bytes()


def test_a_zero_point_of_0_is_stored_as_the_largest_number(tmp_path: Path) -> None:
    source = Source(GPTQ, packing("gptq"))
    for key, (_, array) in source.stored.items():
        if key.endswith("qzeros"):
            array[:] = -1
    summary = converters.convert(source.save(tmp_path / "source"), tmp_path / "out.gguf")
    found, kinds = decoded(tmp_path / "out.gguf")
    assert all(item.exact for item in summary.imports)
    assert kinds["blk.0.ffn_up.weight"] == "Q4_1"
    assert all(found[target].min() == 0 < found[target].max() for target in source.weights)


def test_layers_may_have_codes_of_other_bits(tmp_path: Path) -> None:
    source = Source({**GPTQ, "dynamic": {"+:.*q_proj": {"bits": 8}}}, packing("gptq"))
    parts, weights = packers.gptq(np.random.default_rng(4), WIDTH, WIDTH, bits=8)
    source.stored |= {Q_PROJ + name: part for name, part in parts.items()}
    summary = converters.convert(source.save(tmp_path / "source"), tmp_path / "out.gguf")
    found, kinds = decoded(tmp_path / "out.gguf")
    assert all(item.exact for item in summary.imports)
    assert (kinds["blk.0.attn_q.weight"], kinds["blk.1.attn_q.weight"]) == ("Q8_0", "Q4_0")
    assert sorted(found["blk.0.attn_q.weight"].ravel()) == sorted(weights.ravel())


def test_an_index_in_order_may_be_missing(tmp_path: Path) -> None:
    source = Source({**GPTQ, "group_size": 64}, packing("gptq", size=64))
    converters.convert(source.save(tmp_path / "a"), tmp_path / "a.gguf", name="m")
    source.stored = {n: part for n, part in source.stored.items() if not n.endswith("g_idx")}
    converters.convert(source.save(tmp_path / "b"), tmp_path / "b.gguf", name="m")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_pieces_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gptq asymmetric", "awq", "nf4", "fp8", "compressed asymmetric"):
        config, packer = (EXACT.get(name) or NEAR[name])[:2]
        folder = Source(config, packer).save(tmp_path / name)
        converters.convert(folder, tmp_path / "whole.gguf", overwrite=True)
        with monkeypatch.context() as patch:
            patch.setattr("converters._pieces._PIECE_BYTES", 4 * WIDTH * 5)
            converters.convert(folder, tmp_path / "pieces.gguf", overwrite=True)
        assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "pieces.gguf").read_bytes()


def test_memory_is_that_of_a_matrix_and_not_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converters._pieces._PIECE_BYTES", 1 << 14)
    folder = Source(GPTQ, packing("gptq")).save(tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    peaks = []
    for layers in (LAYERS, 40):
        config["num_hidden_layers"] = layers
        (folder / "config.json").write_text(json.dumps(config))
        source = Source(GPTQ, packing("gptq"))
        for layer in range(LAYERS, layers):
            source.stored |= {
                name.replace("layers.0.", f"layers.{layer}."): part
                for name, part in source.stored.items()
                if "layers.0." in name
            }
        (folder / "model.safetensors").write_bytes(packers.safetensors(source.stored))
        del source
        tracemalloc.start()
        converters.convert(folder, tmp_path / "out.gguf", overwrite=True, self_test=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Names and shapes of 38 more layers; their weights would be 4 MB packed, 28 MB as floats.
    assert peaks[1] - peaks[0] < 2_500_000


def test_a_group_of_zeros_is_one(tmp_path: Path) -> None:
    source = Source(GPTQ, packing("gptq"))
    source.stored[Q_PROJ + "scales"][1][0, 7] = 0
    summary = converters.convert(source.save(tmp_path / "source"), tmp_path / "out.gguf")
    assert all(item.exact for item in summary.imports)
    (row,) = np.flatnonzero(~decoded(tmp_path / "out.gguf")[0]["blk.0.attn_q.weight"].any(axis=1))
    assert row == 14  # the half-split row 7 as one of a pair


def test_the_command_line_names_the_file_and_lists_what_is_not_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config, packer, _, _ = NEAR["gptq desc_act"]
    Source(config, packer).save(tmp_path / "model")
    assert cli.main(["model"]) == 0
    assert "not exact: blk.0.attn_q.weight: Q8_0 of 4-bit GPTQ" in capsys.readouterr().out
    assert (tmp_path / "model-auto.gguf").is_file()
    assert cli.main(["model", "--type", "q4_0", "-q"]) == 0
    assert decoded(tmp_path / "model-q4_0.gguf")[1]["blk.0.attn_q.weight"] == "Q4_0"


def test_a_plain_checkpoint_keeps_its_types_where_that_is_asked_for(tmp_path: Path) -> None:
    source = source_of("qwen3", tmp_path / "source")
    stored = {d for d, _, _ in read_safetensors(source / "model.safetensors").values()}
    summary = converters.convert(source, tmp_path / "out.gguf", dtype="auto")
    assert set(decoded(tmp_path / "out.gguf")[1].values()) <= {*stored, "F32"}
    assert summary.imports == ()
    with pytest.raises(
        ArgumentError, match=r"dtype: expected one of f32, .*auto, found 'automatic'"
    ):
        converters.convert(source, tmp_path / "out.gguf", dtype="automatic")


def test_an_adapter_is_added_to_what_quantized_weights_stand_for(tmp_path: Path) -> None:
    source = Source(GPTQ, packing("gptq"))
    folder, adapter = source.save(tmp_path / "source"), tmp_path / "adapter"
    adapter.mkdir()
    plain = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps(plain))
    at = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    a, b = np.ones((1, WIDTH), np.float32), np.full((FFN, 1), 0.25, np.float32)
    (adapter / "adapter_model.safetensors").write_bytes(
        packers.safetensors({f"{at}A.weight": ("F32", a), f"{at}B.weight": ("F32", b)})
    )
    converters.convert(folder, tmp_path / "out.gguf", lora=adapter, dtype="f32")
    found = decoded(tmp_path / "out.gguf")[0]["blk.0.ffn_up.weight"]
    assert np.array_equal(found, source.weights["blk.0.ffn_up.weight"] + np.float32(0.25))
    summary = converters.convert(folder, tmp_path / "auto.gguf", lora=adapter)
    kinds = decoded(tmp_path / "auto.gguf")[1]
    assert (kinds["blk.0.ffn_up.weight"], kinds["blk.0.ffn_down.weight"]) == ("BF16", "Q4_0")
    assert sum(item.exact for item in summary.imports) >= 13
    converters.convert_adapter(adapter, tmp_path / "lora.gguf", base=folder)


@pytest.mark.parametrize("inside", [False, True])
def test_a_text_model_inside_one_that_sees_may_be_quantized(tmp_path: Path, inside: bool) -> None:
    folder = source_of("gemma3", tmp_path / "wrapped")
    text = json.loads((folder / "config.json").read_text("utf-8"))
    text.pop("architectures")
    wrapper = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    (text if inside else wrapper)["quantization_config"] = {**AWQ, "group_size": -1}
    (folder / "config.json").write_text(json.dumps(wrapper))
    rng, stored, expected = np.random.default_rng(1), {}, {}
    for key, (dtype, shape, data) in read_safetensors(folder / "model.safetensors").items():
        name = key.replace("model.", "model.language_model.", 1)
        if ".mlp." in key:
            parts, weights = packers.awq(rng, *shape, size=-1)
            stored |= {name.removesuffix("weight") + n: part for n, part in parts.items()}
            expected[key.split(".")[2], key.split(".")[4].removesuffix("_proj")] = weights
        else:
            stored[name] = (dtype, np.frombuffer(data, np.uint8).view("<u2").reshape(shape))
    (folder / "model.safetensors").write_bytes(packers.safetensors(stored))
    converters.convert(folder, tmp_path / "out.gguf", dtype="f32")
    found = decoded(tmp_path / "out.gguf")[0]
    assert expected
    for (layer, name), weights in expected.items():
        assert np.array_equal(found[f"blk.{layer}.ffn_{name}.weight"], weights)
