"""Types that the converter writes: the asked for, the chosen by pattern, the fallen back to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from test_converters import CONFIG, read, write_safetensors

import converters
from converters import __main__ as cli
from converters._encode import BY_NAME
from pyengine import ArgumentError, ConversionError, Engine, quantize

GOLDEN = Path(__file__).parent.parent / "golden"
LAYERS, WIDTH, FFN, KV = 2, 256, 288, 128  # 288 is nine blocks of 32 and none of 256
SMALLER = {
    "q2_k": "Q4_0",
    "q3_k": "Q4_0",
    "q4_k": "Q5_0",
    "q5_k": "Q5_1",
    "q6_k": "Q8_0",
    "iq4_xs": "IQ4_NL",
}
QUANTIZED = [name for name, kind in BY_NAME.items() if kind.quantized]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with rows of 256 and of 288 weights."""
    return write_checkpoint(tmp_path / "model", FFN)


def write_checkpoint(folder: Path, ffn: int) -> Path:
    folder.mkdir()
    source = GOLDEN / "llama-grouped-tied" / "tokenizer.json"
    vocab = len(json.loads(source.read_text("utf-8"))["model"]["vocab"])
    sizes = {"hidden_size": WIDTH, "intermediate_size": ffn, "vocab_size": vocab}
    (folder / "config.json").write_text(json.dumps({**CONFIG, **sizes}))
    (folder / "tokenizer.json").write_bytes(source.read_bytes())
    write_safetensors(folder / "model.safetensors", weights(ffn, vocab))
    return folder


def weights(ffn: int, vocab: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(3)
    shapes = {
        "model.embed_tokens": (vocab, WIDTH),
        "model.norm": (WIDTH,),
        "lm_head": (vocab, WIDTH),
    }
    for i in range(LAYERS):
        shapes |= {
            f"model.layers.{i}.{name}": shape
            for name, shape in {
                "input_layernorm": (WIDTH,),
                "post_attention_layernorm": (WIDTH,),
                "self_attn.q_proj": (WIDTH, WIDTH),
                "self_attn.k_proj": (KV, WIDTH),
                "self_attn.v_proj": (KV, WIDTH),
                "self_attn.o_proj": (WIDTH, WIDTH),
                "mlp.gate_proj": (ffn, WIDTH),
                "mlp.up_proj": (ffn, WIDTH),
                "mlp.down_proj": (WIDTH, ffn),
            }.items()
        }
    made = {f"{n}.weight": rng.normal(0, 0.08, s).astype(np.float32) for n, s in shapes.items()}
    return {n: a + np.float32(1) if a.ndim == 1 else a for n, a in made.items()}


def types_of(path: Path) -> dict[str, str]:
    return {name: tensor.tensor_type.name for name, tensor in read(path)[1].items()}


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_every_type_is_written_and_runs(folder: Path, tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "out.gguf"
    summary = converters.convert(folder, out, dtype=dtype.upper(), pure=dtype == "q5_k")
    fields, found = read(out)
    stated = {t: f"{t}_s" for t in ("q3_k", "q4_k", "q5_k")} | {"mxfp4": "mxfp4_moe"}
    ftype = gguf.LlamaFileType["MOSTLY_" + stated.get(dtype, dtype).upper()]
    assert fields["general.file_type"] == ftype
    assert fields["general.quantization_version"] == 2
    for name, tensor in found.items():
        kind = dtype.upper()
        if name.endswith("norm.weight"):
            kind = "F32"
        elif name in ("token_embd.weight", "output.weight") and dtype != "q5_k":
            kind = "Q8_0"
        elif name.endswith("ffn_down.weight"):
            kind = SMALLER.get(dtype, kind)
        assert tensor.tensor_type.name == kind, name
    fallen = [f"blk.{i}.ffn_down.weight" for i in range(LAYERS)] if dtype in SMALLER else []
    assert [f.name for f in summary.fallbacks] == fallen
    with Engine(out) as engine:
        assert np.isfinite(engine.logits([1, 2, 3])).all()


def test_the_data_is_the_quantizers(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    converters.convert(folder, out, dtype="q6_k", tensor_types={"*.attn_q": "Q3_K"})
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    source = weights(FFN, vocab)
    found = read(out)[1]
    up = source["model.layers.1.mlp.up_proj.weight"]
    assert found["blk.1.ffn_up.weight"].data.tobytes() == quantize(up, "Q6_K").tobytes()
    q = source["model.layers.1.self_attn.q_proj.weight"]
    paired = q.reshape(4, 2, 32, WIDTH).swapaxes(1, 2).reshape(WIDTH, WIDTH)
    assert found["blk.1.attn_q.weight"].data.tobytes() == quantize(paired, "Q3_K").tobytes()


def test_rows_of_no_blocks_at_all_are_f16(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", 40)
    out = tmp_path / "out.gguf"
    summary = converters.convert(folder, out, dtype="q4_k")
    assert types_of(out)["blk.0.ffn_down.weight"] == "F16"
    assert "F16 instead of Q4_K: rows of 40 weights are not whole blocks of 256" in summary.table()


def test_patterns_choose_types_and_the_first_that_fits_decides(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    summary = converters.convert(
        folder,
        out,
        dtype="f16",
        tensor_types={
            "blk.1.ffn_*": "q5_0",
            "blk.*.ffn_down.weight": "q6_K",
            "blk.*.attn_?": "Q4_1",
            "token_embd": "q4_k",
            "out*": "f32",
            "blk.*": "bf16",
        },
    )
    found = types_of(out)
    assert {found[f"blk.0.attn_{x}.weight"] for x in "qkv"} == {"Q4_1"}
    assert found["blk.0.attn_output.weight"] == "BF16"
    assert found["blk.1.ffn_down.weight"] == found["blk.1.ffn_up.weight"] == "Q5_0"
    assert found["blk.0.ffn_down.weight"] == "Q8_0"  # rows of 288
    assert found["token_embd.weight"] == "Q4_K"
    assert found["output.weight"] == "F32"
    assert found["blk.0.attn_norm.weight"] == found["output_norm.weight"] == "F32"
    assert [(f.name, f.wanted) for f in summary.fallbacks] == [("blk.0.ffn_down.weight", "Q6_K")]
    fields = read(out)[0]
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert fields["general.quantization_version"] == 2
    with Engine(out) as engine:
        assert np.isfinite(engine.logits([1, 2, 3])).all()


@pytest.mark.parametrize("pattern", ["blk.*.ffn_dwn", "blk.7.*", "*norm*", "attn_q", "[", ""])
def test_a_pattern_that_fits_no_matrix_is_refused(
    folder: Path, tmp_path: Path, pattern: str
) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(ConversionError, match=r"tensor type of .*fits a matrix, found none such"):
        converters.convert(folder, out, tensor_types={"blk.*": "q8_0", pattern: "q6_k"})
    assert not out.exists()


@pytest.mark.parametrize("name", ["q7_k", "", "q8_1", 5, ()])
def test_an_unknown_type_is_refused_by_name(folder: Path, tmp_path: Path, name: Any) -> None:
    with pytest.raises(ArgumentError, match=r"dtype: expected one of f32, .*, found"):
        converters.convert(folder, tmp_path / "out.gguf", dtype=name)
    with pytest.raises(ArgumentError, match=r"tensor type of 'blk\.\*': expected one of f32"):
        converters.convert(folder, tmp_path / "out.gguf", tensor_types={"blk.*": name})


def test_the_command_line_takes_patterns(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    options = ["--type", "Q5_K", "--tensor-type", "blk.*.attn_v=Q6_k", "--tensor-type", "*_q=q8_0"]
    assert cli.main([str(folder), "-o", str(out), "-q", *options]) == 0
    found = types_of(out)
    assert found["blk.0.attn_v.weight"] == "Q6_K"
    assert found["blk.1.attn_q.weight"] == "Q8_0"
    assert found["blk.1.attn_k.weight"] == "Q5_K"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--type", "q7"], 2, "'q7' is not one of 'f32'"),
        (["--tensor-type", "blk.*"], 2, "'blk.*': expected PATTERN=TYPE"),
        (["--tensor-type", "=q8_0"], 2, "'=q8_0': expected PATTERN=TYPE"),
        (["--tensor-type", "blk.*=q7"], 2, "'blk.*=q7': expected PATTERN=TYPE"),
        (["--tensor-type", "a=q8_0", "--tensor-type", "a=q6_k"], 2, "one type, found q8_0, too"),
        (["--tensor-type", "nothing=q8_0"], 1, "tensor type of 'nothing': expected a pattern"),
    ],
)
def test_the_command_line_refuses(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    message: str,
) -> None:
    out = tmp_path / "out.gguf"
    assert cli.main([str(folder), "-o", str(out), *options]) == code
    assert message in capsys.readouterr().err
    assert not out.exists()
