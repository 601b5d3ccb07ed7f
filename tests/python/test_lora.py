"""Adapters: what their GGUF files hold, what merging makes of a model, what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_converters import CONFIG, read, weights, write_safetensors
from test_families import read_safetensors
from test_families import write_safetensors as write_stored

import converters
from converters import __main__ as cli
from converters._mapping import pair_rows
from pyengine import ArgumentError, ConversionError, Engine, ModelFileError

Json = dict[str, Any]
Tensors = dict[str, np.ndarray[Any, Any]]

GOLDEN = Path(__file__).parent.parent / "golden"
RANK, WIDTH, VOCAB, HEAD_WIDTH = 3, 64, 320, 16
AT = "base_model.model.model.layers."
PLAIN: Json = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "bias": "none"}
SHAPES = {
    "0.self_attn.q_proj": (64, WIDTH),
    "1.self_attn.k_proj": (32, WIDTH),
    "0.self_attn.v_proj": (32, WIDTH),
    "1.mlp.down_proj": (WIDTH, 96),
}
TARGETS = {
    "0.self_attn.q_proj": "blk.0.attn_q",
    "1.self_attn.k_proj": "blk.1.attn_k",
    "0.self_attn.v_proj": "blk.0.attn_v",
    "1.mlp.down_proj": "blk.1.ffn_down",
}


def pairs(rank: int = RANK) -> Tensors:
    rng = np.random.default_rng(9)
    made: Tensors = {}
    for module, (rows, columns) in SHAPES.items():
        made[f"{AT}{module}.lora_A.weight"] = rng.normal(0, 0.3, (rank, columns))
        made[f"{AT}{module}.lora_B.weight"] = rng.normal(0, 0.3, (rows, rank))
    return {name: array.astype(np.float32) for name, array in made.items()}


def write_adapter(folder: Path, config: Json | None = None, tensors: Tensors | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **(config or {})}))
    write_safetensors(folder / "adapter_model.safetensors", tensors or pairs())
    return folder


def write_base(folder: Path, tensors: Tensors | None = None, config: Json | None = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    shutil.copy(GOLDEN / "llama-grouped-tied" / "tokenizer.json", folder)
    write_safetensors(folder / "model.safetensors", tensors or weights())
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


def values(path: Path) -> Tensors:
    return {name: np.array(tensor.data) for name, tensor in read(path)[1].items()}


def test_the_file_of_an_adapter(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "tuned")
    out = tmp_path / "out.gguf"
    seen: list[str] = []
    summary = converters.convert_adapter(
        adapter, out, base=base, progress=lambda done, total, name: seen.append(name)
    )
    fields, found = read(out)
    assert {k: v for k, v in fields.items() if not k.startswith("GGUF.")} == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.name": "tuned",
        "adapter.type": "lora",
        "adapter.lora.alpha": 6.0,
        "general.file_type": 0,
    }
    source = pairs()
    expected: Tensors = {}
    for module, target in TARGETS.items():
        b = source[f"{AT}{module}.lora_B.weight"]
        paired = target.endswith(("_q", "_k"))
        expected[target + ".weight.lora_a"] = source[f"{AT}{module}.lora_A.weight"]
        expected[target + ".weight.lora_b"] = pair_rows(b, HEAD_WIDTH) if paired else b
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape.tolist() == list(array.shape[::-1])
        assert np.array_equal(found[name].data, array), name
    assert summary.types == {"F32": (8, sum(a.nbytes for a in expected.values()))}
    assert summary.size == out.stat().st_size
    assert set(seen) == found.keys()


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({}, {}),
        ({"use_rslora": True}, dict.fromkeys(SHAPES, 6 / math.sqrt(RANK))),
        ({"alpha_pattern": {"q_proj": 12}}, {"0.self_attn.q_proj": 4.0}),
        ({"alpha_pattern": {"proj": 12, "layers.1.mlp.down_proj": 9}}, {"1.mlp.down_proj": 3.0}),
        (
            {"alpha_pattern": {r"layers\.[01]\..*_proj": 12, "q_proj": 1}, "use_rslora": True},
            dict.fromkeys(SHAPES, 12 / math.sqrt(RANK)),
        ),
    ],
)
def test_scales_other_than_alpha_over_rank_go_into_b(
    base: Path, tmp_path: Path, config: Json, scales: dict[str, float]
) -> None:
    adapter = write_adapter(tmp_path / "tuned", config)
    out = tmp_path / "out.gguf"
    converters.convert_adapter(adapter, out, base=base)
    found, source = values(out), pairs()
    for module, target in TARGETS.items():
        b = source[f"{AT}{module}.lora_B.weight"]
        b = pair_rows(b, HEAD_WIDTH) if target.endswith(("_q", "_k")) else b
        factor = scales.get(module, 2.0) / 2.0
        np.testing.assert_allclose(found[target + ".weight.lora_b"], b * factor, rtol=1e-6)
        if module not in scales:
            assert np.array_equal(found[target + ".weight.lora_b"], b)


def test_ranks_by_pattern(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "tuned", {"r": 8, "rank_pattern": {".*": RANK}})
    out = tmp_path / "out.gguf"
    converters.convert_adapter(adapter, out, base=base)
    assert read(out)[1]["blk.0.attn_q.weight.lora_a"].shape.tolist() == [WIDTH, RANK]
    with pytest.raises(ConversionError, match=r"matrix of rank 8 as adapter_config.json says"):
        converters.convert_adapter(
            write_adapter(tmp_path / "tuned", {"r": 8}), out, base=base, overwrite=True
        )


@pytest.mark.parametrize("dtype", ["f16", "BF16"])
def test_types_of_16_bits(base: Path, tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "out.gguf"
    converters.convert_adapter(write_adapter(tmp_path / "tuned"), out, base=base, dtype=dtype)
    kinds = {tensor.tensor_type.name for tensor in read(out)[1].values()}
    assert kinds == {dtype.upper()}


def test_the_base_that_the_adapter_names(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    (base / "model.safetensors").unlink()  # its weights are not needed
    named = {"base_model_name_or_path": str(base)}
    converters.convert_adapter(write_adapter(tmp_path / "tuned", named), out)
    assert read(out)[0]["general.architecture"] == "llama"
    for name in ("org/some-model", "", None, str(tmp_path / "none")):
        adapter = write_adapter(tmp_path / "tuned", {"base_model_name_or_path": name})
        with pytest.raises(ConversionError, match=r"base_model_name_or_path: .*--base names it"):
            converters.convert_adapter(adapter, out, overwrite=True)
    with pytest.raises(ConversionError, match=r"none: expected a folder with config.json"):
        converters.convert_adapter(adapter, out, base=tmp_path / "none", overwrite=True)


def test_a_copy_of_the_bases_config_beside_the_adapter(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "tuned", {"base_model_name_or_path": "org/some-model"})
    shutil.copy(base / "config.json", adapter)
    out = tmp_path / "out.gguf"
    assert cli.main([str(adapter), "-o", str(out), "-q"]) == 0
    assert read(out)[0]["general.type"] == "adapter"
    # With a model's weights beside it, it is the folder of a model.
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.copy(base / name, adapter)
    assert cli.main([str(adapter), "-o", str(out), "-q", "--force"]) == 0
    assert read(out)[0]["general.type"] == "model"


def merged_by_hand(source: Tensors, scale: float) -> Tensors:
    lora = pairs()
    out = dict(source)
    for module in SHAPES:
        a, b = (lora[f"{AT}{module}.lora_{half}.weight"] for half in "AB")
        # As the converter sums: one rank after the other, in 32 bits.
        delta = np.zeros((b.shape[0], a.shape[1]), np.float32)
        for i in range(RANK):
            delta += (b[:, i : i + 1] * np.float32(scale)) * a[i]
        out[f"model.layers.{module}.weight"] = source[f"model.layers.{module}.weight"] + delta
    return out


@pytest.mark.parametrize("dtype", ["f32", "q8_0", "q4_0"])
def test_merging_is_converting_the_sum(base: Path, tmp_path: Path, dtype: str) -> None:
    adapter = write_adapter(tmp_path / "tuned")
    converters.convert(base, tmp_path / "merged.gguf", dtype=dtype, lora=adapter, name="x")
    by_hand = write_base(tmp_path / "by-hand", merged_by_hand(weights(), 2.0))
    converters.convert(by_hand, tmp_path / "expected.gguf", dtype=dtype, name="x")
    found = (tmp_path / "merged.gguf").read_bytes()
    assert found == (tmp_path / "expected.gguf").read_bytes()
    with Engine(tmp_path / "merged.gguf") as engine:
        assert np.isfinite(engine.logits([1, 2, 3])).all()


def test_pieces_of_a_matrix_are_merged_alike(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = write_adapter(tmp_path / "tuned")
    converters.convert(base, tmp_path / "whole.gguf", dtype="f32", lora=adapter)
    monkeypatch.setattr("converters._pieces._PIECE_BYTES", 4 * WIDTH * 5)
    converters.convert(base, tmp_path / "pieces.gguf", dtype="f32", lora=adapter)
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "pieces.gguf").read_bytes()


def test_merging_whole_tensors_and_embeddings(base: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    a = rng.normal(0, 0.3, (RANK, VOCAB)).astype(np.float32)
    b = rng.normal(0, 0.3, (WIDTH, RANK)).astype(np.float32)
    norm, head = np.ones(WIDTH, np.float32), np.ones((VOCAB, WIDTH), np.float32)
    tensors = {
        "base_model.model.model.embed_tokens.lora_embedding_A": a,
        "base_model.model.model.embed_tokens.lora_embedding_B": b,
        "base_model.model.model.norm.weight": norm,
        "base_model.model.lm_head.weight": head,
    }
    adapter = write_adapter(tmp_path / "tuned", None, tensors)
    out = tmp_path / "out.gguf"
    converters.convert(base, out, dtype="f32", lora=adapter)
    found = values(out)
    expected = weights()["model.embed_tokens.weight"] + 2.0 * (b @ a).T
    np.testing.assert_allclose(found["token_embd.weight"], expected, rtol=0, atol=1e-6)
    assert np.array_equal(found["output_norm.weight"], norm)
    assert np.array_equal(found["output.weight"], head)
    with pytest.raises(ConversionError, match=r"lm_head.weight'.*whole tensor.*merge it"):
        converters.convert_adapter(adapter, out, base=base, overwrite=True)
    del tensors["base_model.model.model.norm.weight"], tensors["base_model.model.lm_head.weight"]
    converters.convert_adapter(
        write_adapter(adapter, None, tensors), out, base=base, overwrite=True
    )
    assert np.array_equal(values(out)["token_embd.weight.lora_a"], a.T)
    assert np.array_equal(values(out)["token_embd.weight.lora_b"], b)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type: expected 'LORA', found 'IA3'"),
        ({"peft_type": None}, "peft_type: expected 'LORA', found None"),
        ({"use_dora": True}, "use_dora: expected nothing, as in plain LoRA, found True"),
        ({"lora_bias": True}, "lora_bias: expected nothing"),
        ({"layer_replication": [[0, 2]]}, "layer_replication: expected nothing"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens: expected nothing"),
        ({"target_parameters": ["x"]}, "target_parameters: expected nothing"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: expected a start .* found 'pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: expected a start .* found 'olora'"),
        ({"init_lora_weights": [1]}, "init_lora_weights: expected a start"),
        ({"r": 0}, "r: expected a positive integer, found 0"),
        ({"r": "3"}, "r: expected a positive integer, found '3'"),
        ({"lora_alpha": 0}, "lora_alpha: expected a positive number, found 0"),
        ({"use_rslora": "yes"}, "use_rslora: expected true or false"),
        ({"rank_pattern": [1]}, "rank_pattern: expected an object"),
        ({"rank_pattern": {"q_proj": 2.5}}, "rank_pattern: q_proj: expected a positive integer"),
        ({"alpha_pattern": {"(a+)+b": 2}}, r"alpha_pattern: \(a\+\)\+b: expected a simple pattern"),
        ({"alpha_pattern": {"[": 2}}, r"alpha_pattern: \[: expected a simple pattern"),
        ({"alpha_pattern": {".*.*.*.*x": 2}}, "expected a simple pattern"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern: q_proj: expected a positive number"),
    ],
)
def test_configs_of_other_kinds_are_refused_by_name(
    base: Path, tmp_path: Path, config: Json, message: str
) -> None:
    adapter = write_adapter(tmp_path / "tuned", config)
    with pytest.raises(ConversionError, match="adapter_config.json: .*" + message):
        converters.convert_adapter(adapter, tmp_path / "out.gguf", base=base)
    with pytest.raises(ConversionError, match="adapter_config.json: .*" + message):
        converters.convert(base, tmp_path / "out.gguf", lora=adapter)


SMALL = np.ones((RANK, WIDTH), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{AT}0.self_attn.q_proj.lora_B.weight": None}, "q_proj.lora_B.weight' beside its other"),
        ({f"{AT}1.mlp.down_proj.lora_A.weight": None}, "down_proj.lora_A.weight' beside its other"),
        ({f"{AT}0.self_attn.q_proj.lora_magnitude_vector": SMALL}, "another kind"),
        ({f"{AT}0.self_attn.q_proj.lora_B.bias": SMALL[0]}, "another kind"),
        ({"model.layers.0.mlp.up_proj.weight": SMALL}, "another kind"),
        (
            {f"{AT}1.mlp.down_proj.lora_A.weight": SMALL},
            r"down_proj.weight' of shape \[64, 96\], found one for \[64, 64\]",
        ),
        (
            {f"{AT}0.self_attn.v_proj.lora_A.weight": np.ones((2, WIDTH), np.float32)},
            r"v_proj.lora_A.weight': expected a matrix of rank 3 .*found shape \[2, 64\]",
        ),
        (
            {f"{AT}0.self_attn.v_proj.lora_B.weight": SMALL[0]},
            r"v_proj.lora_B.weight': expected a matrix of rank 3",
        ),
        (
            {f"{AT}7.mlp.up_proj.lora_{half}.weight": SMALL.reshape(shape) for half, shape in
             (("A", (RANK, WIDTH)), ("B", (WIDTH, RANK)))},
            r"model.layers.7.mlp.up_proj.weight'",
        ),
        (
            {f"{AT}0.self_attn.q_proj.lora_A.weight": np.full((RANK, WIDTH), np.nan, np.float32)},
            "expected finite weights, found NaN",
        ),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(
    base: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    tensors = {n: a for n, a in {**pairs(), **change}.items() if a is not None}
    adapter = write_adapter(tmp_path / "tuned", None, tensors)
    out = tmp_path / "out.gguf"
    with pytest.raises(ConversionError, match=message):
        converters.convert_adapter(adapter, out, base=base)
    with pytest.raises(ConversionError, match=message):
        converters.convert(base, out, lora=adapter)
    assert not out.exists()


def test_what_only_merging_refuses(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    adapter = write_adapter(tmp_path / "tuned", {"fan_in_fan_out": True})
    with pytest.raises(ConversionError, match=r"fan_in_fan_out: expected false, found True"):
        converters.convert(base, out, lora=adapter)
    larger = {"base_model.model.lm_head.weight": np.ones((VOCAB + 1, WIDTH), np.float32)}
    adapter = write_adapter(tmp_path / "tuned", None, {**pairs(), **larger})
    with pytest.raises(ConversionError, match=r"base's shape \[320, 64\], found \[321, 64\]"):
        converters.convert(base, out, lora=adapter)
    twice = {f"{AT}0.self_attn.q_proj.weight": np.ones((64, WIDTH), np.float32)}
    adapter = write_adapter(tmp_path / "tuned", None, {**pairs(), **twice})
    with pytest.raises(ConversionError, match=r"expected one change of .*found another, too"):
        converters.convert(base, out, lora=adapter)


@pytest.mark.parametrize("name", ["model.embed_tokens", "lm_head"])
def test_a_head_that_is_the_embedding_is_not_adapted(tmp_path: Path, name: str) -> None:
    tied = write_base(tmp_path / "tied", weights(tied=True), {"tie_word_embeddings": True})
    whole = {f"base_model.model.{name}.weight": np.ones((VOCAB, WIDTH), np.float32)}
    adapter = write_adapter(tmp_path / "tuned", None, {**pairs(), **whole})
    with pytest.raises(ConversionError, match=r"embedding and output head at once"):
        converters.convert(tied, tmp_path / "out.gguf", lora=adapter)
    halves = (RANK, VOCAB), (WIDTH, RANK)
    split = {
        f"base_model.model.model.embed_tokens.lora_embedding_{half}": np.ones(shape, np.float32)
        for half, shape in zip("AB", halves, strict=True)
    }
    adapter = write_adapter(tmp_path / "tuned", None, split)
    with pytest.raises(ConversionError, match=r"embedding and output head at once"):
        converters.convert(tied, tmp_path / "out.gguf", lora=adapter)
    with pytest.raises(ConversionError, match=r"an embedding that is the output head, too"):
        converters.convert_adapter(adapter, tmp_path / "out.gguf", base=tied)


def test_a_head_that_is_the_embedding_unless_the_config_denies_it(tmp_path: Path) -> None:
    # Gemma's absent key means that they are one: the stored head is not read.
    golden = Path(__file__).parent.parent / "golden"
    folder = tmp_path / "gemma2"
    shutil.copytree(golden / "families" / "gemma2", folder)
    shutil.copy(golden / "llama-grouped-tied" / "tokenizer.json", folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config))
    stored = read_safetensors(folder / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    write_stored(folder / "model.safetensors", stored)
    rows, columns = config["vocab_size"], config["hidden_size"]
    split = {
        "base_model.model.lm_head.lora_A.weight": np.ones((RANK, columns), np.float32),
        "base_model.model.lm_head.lora_B.weight": np.ones((rows, RANK), np.float32),
    }
    adapter = write_adapter(tmp_path / "tuned", None, split)
    with pytest.raises(ConversionError, match=r"embedding and output head at once"):
        converters.convert(folder, tmp_path / "out.gguf", lora=adapter)


def test_long_names_beside_patterns_are_refused(base: Path, tmp_path: Path) -> None:
    stem = "base_model.model." + "a." * 1000
    split = {f"{stem}lora_A.weight": SMALL, f"{stem}lora_B.weight": SMALL}
    adapter = write_adapter(tmp_path / "tuned", {"rank_pattern": {"[^x]*[^x]*[^x]*x": 2}}, split)
    with pytest.raises(ConversionError, match=r"names of at most 200 letters beside patterns"):
        converters.convert(base, tmp_path / "out.gguf", lora=adapter)


def test_broken_folders(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(ConversionError, match=r"expected a folder with adapter_config.json"):
        converters.convert_adapter(base, out, base=base)
    adapter = write_adapter(tmp_path / "tuned")
    with pytest.raises(ArgumentError, match=r"dtype: expected one of f32, f16, bf16, found 'q8_0'"):
        converters.convert_adapter(adapter, out, base=base, dtype="q8_0")
    with pytest.raises(ConversionError, match=r"another file than the adapter's own"):
        path = adapter / "adapter_model.safetensors"
        converters.convert_adapter(adapter, path, base=base, overwrite=True)
    with pytest.raises(ConversionError, match=r"another file than the checkpoint's own"):
        converters.convert(base, path, lora=adapter, overwrite=True)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConversionError, match=r"adapter_model.safetensors"):
        converters.convert_adapter(adapter, out, base=base)
    path.unlink()
    with pytest.raises(ConversionError, match=r"or adapter_model.bin, found neither"):
        converters.convert(base, out, lora=adapter)
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(ConversionError, match=r"adapter_config.json"):
        converters.convert(base, out, lora=adapter)
    out.touch()
    with pytest.raises(ModelFileError, match=r"--force replaces it"):
        converters.convert_adapter(write_adapter(tmp_path / "tuned"), out, base=base)
    assert out.stat().st_size == 0


def test_the_command_line(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = write_adapter(tmp_path / "tuned")
    assert cli.main([str(adapter), "--base", str(base)]) == 0
    assert read(tmp_path / "tuned-f32.gguf")[0]["general.type"] == "adapter"
    assert cli.main([str(adapter), "--base", str(base), "--type", "F16", "-o", "half.gguf"]) == 0
    assert cli.main([str(base), "--lora", str(adapter), "--type", "q8_0", "-q"]) == 0
    assert read(tmp_path / "base-q8_0.gguf")[0]["general.type"] == "model"
    capsys.readouterr()
    for options, message in (
        ([str(adapter)], "--base names it"),
        ([str(adapter), "--base", str(base), "--pure"], "found one of an adapter"),
        ([str(adapter), "--base", str(base), "--lora", str(adapter)], "found one of an adapter"),
        ([str(adapter), "--base", str(base), "--type", "q4_0"], "dtype: expected one of f32"),
        ([str(base), "--base", str(base)], "--base: expected the folder of an adapter"),
    ):
        assert cli.main([*options, "-o", "none.gguf"]) in (1, 2)
        assert message in capsys.readouterr().err
        assert not (tmp_path / "none.gguf").exists()
