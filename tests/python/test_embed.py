"""Embedding: converter, engine and command line against hidden states that transformers computed.

tests/golden/make_goldens.py wrote the checkpoints and the states; torch is not needed here.
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
from test_families import read_safetensors, write_safetensors
from tiny import Model

import converters
from pyengine import (
    ArgumentError,
    CancelFlag,
    CancelledError,
    ContextFullError,
    ConversionError,
    Engine,
    ModelFormatError,
    NumericError,
    OutOfMemoryError,
    UnsupportedModelError,
)
from pyengine._cli import main

GOLDEN = Path(__file__).parent.parent / "golden" / "embedders"
NAMES = sorted(path.name for path in GOLDEN.iterdir())
ENCODERS = [name for name in NAMES if name != "qwen3"]
POOLING = {"bert": "mean", "gemma": "mean", "nomic": "mean", "qwen3": "last"}
# Root mean square of the difference beside that of the states.
BOUNDS = {"f16": 0.01, "q8_0": 0.06, "q4_0": 0.5}

Array = np.ndarray[Any, Any]
Converted = Callable[..., Path]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder = tmp_path_factory.mktemp("embedders")

    def convert(name: str, dtype: str = "f32") -> Path:
        out = folder / f"{name}-{dtype}.gguf"
        if not out.exists():
            converters.convert(GOLDEN / name, out, dtype=dtype)
        return out

    return convert


def texts_of(name: str) -> tuple[list[str], list[list[int]]]:
    recorded = json.loads((GOLDEN / name / "texts.json").read_text("utf-8"))
    return recorded["texts"], recorded["tokens"]


def states_of(name: str) -> list[Array]:
    """Hidden states of each text."""
    rows = np.load(GOLDEN / name / "hidden.npy")
    lengths = [len(ids) for ids in texts_of(name)[1]]
    return np.split(rows, np.cumsum(lengths)[:-1])


def pooled(rows: Array, pooling: str) -> Array:
    wide = rows.astype(np.float64)
    vector: Array = {"mean": wide.mean(axis=0), "cls": wide[0], "last": wide[-1]}[pooling]
    return vector / np.linalg.norm(vector)


def rewritten(path: Path, out: Path, change: Callable[[Model], None]) -> Path:
    """A copy of a file with some of it changed."""
    reader = gguf.GGUFReader(path)
    metadata = {
        key: field.contents()
        for key, field in reader.fields.items()
        if not key.startswith(("GGUF.", "pyengine.selftest"))
    }
    model = Model(metadata, {t.name: np.array(t.data) for t in reader.tensors})
    change(model)
    return model.save(out)


# ---- right


@pytest.mark.parametrize("name", NAMES)
def test_texts_become_the_ids_that_transformers_saw(converted: Converted, name: str) -> None:
    texts, tokens = texts_of(name)
    with Engine(converted(name), n_threads=1) as engine:
        assert [engine.tokenize(text) for text in texts] == tokens


@pytest.mark.parametrize("name", NAMES)
def test_f32_states_and_vectors_equal_those_of_transformers(
    converted: Converted, name: str
) -> None:
    texts, tokens = texts_of(name)
    expected = states_of(name)
    with Engine(converted(name), n_threads=2) as engine:
        assert engine.info.pooling == POOLING[name]
        assert engine.info.kind == ("decoder" if name == "qwen3" else "encoder")
        found = engine.embed(texts, pooling="none", normalize=False)
        for rows, wanted in zip(found, expected, strict=True):
            assert wanted.std() > 0.5  # so that 5e-5 says something
            np.testing.assert_allclose(rows, wanted, rtol=0, atol=5e-5)
        for pooling in (None, "mean", "cls", "last"):
            vectors = engine.embed(tokens, pooling=pooling)  # type: ignore[arg-type]
            assert vectors.shape == (len(texts), 32) and vectors.dtype == np.float32
            wide = [pooled(rows, pooling or POOLING[name]) for rows in expected]
            np.testing.assert_allclose(vectors, wide, rtol=0, atol=5e-6)
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
        means = engine.embed(tokens, pooling="mean", normalize=False)
        np.testing.assert_allclose(means, [rows.mean(axis=0) for rows in expected], atol=5e-5)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", NAMES)
def test_narrower_types_stay_near_the_original(converted: Converted, name: str, dtype: str) -> None:
    expected = np.concatenate(states_of(name))
    with Engine(converted(name, dtype), n_threads=2) as engine:
        rows = engine.embed(texts_of(name)[0], pooling="none", normalize=False)
    error = np.concatenate(rows) - expected
    assert np.sqrt(np.mean(error**2) / np.mean(expected**2)) < BOUNDS[dtype]


# ---- reproducible


@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
@pytest.mark.parametrize("name", NAMES)
def test_no_bit_depends_on_what_stands_beside_a_text(
    converted: Converted, name: str, dtype: str
) -> None:
    texts, _ = texts_of(name)
    path = converted(name, dtype)
    options: list[dict[str, Any]] = [
        {"n_threads": 1, "isa": "scalar"},
        {"n_threads": 3},
        {"n_threads": 2, "n_batch": 256},
    ]
    # A decoder's text may be cut anywhere, an encoder's must fit.
    options.append({"n_threads": 2, "n_batch": 7 if name == "qwen3" else 100})
    short = texts if name == "qwen3" else [t for t in texts if len(t) < 160]
    with Engine(path, n_threads=1) as engine:
        expected = {p: engine.embed(texts, pooling=p) for p in ("mean", "cls", "last")}
        tokens = engine.embed(texts, pooling="none")
    for option in options:
        with Engine(path, **option) as engine:
            some = short if option.get("n_batch") == 100 else texts
            rows = [texts.index(text) for text in some]
            for pooling, vectors in expected.items():
                found = engine.embed(some, pooling=pooling)  # type: ignore[call-overload]
                assert np.array_equal(found, vectors[rows])
                backwards = engine.embed(some[::-1] * 3, pooling=pooling)  # type: ignore[call-overload]
                assert np.array_equal(backwards, np.tile(vectors[rows][::-1], (3, 1)))
            for text, row in zip(some, rows, strict=True):
                assert np.array_equal(engine.embed(text)[0], expected[POOLING[name]][row])
                assert np.array_equal(engine.embed([text], pooling="none")[0], tokens[row])
            assert engine.info.kv_bytes == 0


def test_a_decoders_states_are_those_that_make_its_logits(converted: Converted) -> None:
    _, tokens = texts_of("qwen3")
    with Engine(converted("qwen3"), n_threads=1) as engine:
        rows = engine.embed([tokens[0]], pooling="none", normalize=False)[0]
        head = next(t for t in engine.file.tensors if t.name == "token_embd.weight")
        reader = gguf.GGUFReader(converted("qwen3"))
        weights = next(t.data for t in reader.tensors if t.name == head.name)
        np.testing.assert_allclose(rows @ weights.T, engine.logits(tokens[0]), atol=1e-4)


# ---- refused


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_does_not_generate(converted: Converted, name: str) -> None:
    with Engine(converted(name), n_threads=1) as engine:
        for what in (
            lambda: engine.session(),
            lambda: engine.generate("the cat"),
            lambda: engine.logits([2, 5, 3]),
            lambda: engine.perplexity("the cat " * 50, window=8),
        ):
            with pytest.raises(UnsupportedModelError, match="expected a model that generates"):
                what()


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["the cat", ""], ArgumentError, r"texts\[1\]: expected a text, found an empty one"),
        (["a", "the cat " * 400], ContextFullError, r"texts\[1\]: expected at most the 256 tok"),
        ([[2, 3], [2, 9999]], ArgumentError, r"texts\[1\]\[1\]: expected an id from 0 to"),
        ([[2, 3], []], ArgumentError, r"texts\[1\]: expected 1 token or more, found none"),
        ([[2], "a", [1.5]], ArgumentError, r"texts\[2\]: expected a flat sequence of integers"),
        (["a", b"a"], ArgumentError, r"texts\[1\]: expected integers, found bytes"),
        (["a", 7], ArgumentError, r"texts\[1\]: expected a text or token ids, found int"),
        (["a", "\ud800"], ArgumentError, r"texts\[1\]: text: expected Unicode text"),
        (b"a", ArgumentError, "texts: expected a text or a sequence of them, found bytes"),
        (7, ArgumentError, "texts: expected a text or a sequence of them, found int"),
    ],
)
def test_bad_texts_are_named(
    converted: Converted, texts: Any, error: type[Exception], message: str
) -> None:
    with Engine(converted("bert"), n_threads=1) as engine:
        with pytest.raises(error, match=message):
            engine.embed(texts)
        assert engine.embed([]).shape == (0, 32)
        assert engine.embed("a").shape == (1, 32)


def test_bad_options_are_named(converted: Converted) -> None:
    with Engine(converted("bert"), n_threads=1) as engine:
        with pytest.raises(ArgumentError, match="pooling: expected one of none, mean, cls, last"):
            engine.embed("a", pooling="max")  # type: ignore[call-overload]
        with pytest.raises(ArgumentError, match="normalize: expected a bool, found int"):
            engine.embed("a", normalize=1)  # type: ignore[call-overload]
    with Engine(n_threads=1) as engine:
        with pytest.raises(ArgumentError, match=r"since .*names none, found None"):
            engine.embed("a")
        assert engine.embed("a", pooling="last").shape == (1, engine.info.d_model)


def test_a_batch_bounds_an_encoders_context(converted: Converted) -> None:
    text = texts_of("bert")[0][4]
    with Engine(converted("bert"), n_batch=40) as engine:
        assert (engine.n_ctx, engine.info.n_batch) == (40, 40)
        with pytest.raises(ContextFullError, match=r"texts\[0\]: expected at most the 40 tokens"):
            engine.embed(text)
    with Engine(converted("bert"), n_ctx=64) as engine:
        assert (engine.n_ctx, engine.info.n_batch) == (64, 64)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_number_names_its_text(converted: Converted, tmp_path: Path, name: str) -> None:
    texts, tokens = texts_of(name)
    only = next(t for t in tokens[2] if all(t not in ids for ids in tokens[:2]))

    def spoil(model: Model) -> None:
        model.tensors["token_embd.weight"][only] = np.nan

    path = rewritten(converted(name), tmp_path / "nan.gguf", spoil)
    with Engine(path, n_threads=2) as engine, Engine(converted(name)) as whole:
        with pytest.raises(NumericError, match="text 2: expected finite numbers, found nan"):
            engine.embed(texts)
        assert np.array_equal(engine.embed(texts[:2]), whole.embed(texts[:2]))
        assert engine.info.kv_bytes == 0


def test_memory_and_time_are_bounded(converted: Converted) -> None:
    texts, _ = texts_of("bert")
    with Engine(converted("bert"), max_kv_bytes=2**14, n_threads=1) as engine:
        with pytest.raises(OutOfMemoryError, match="KV cache: expected to stay within 16384"):
            engine.embed(texts)
        assert engine.embed(texts[1]).shape == (1, 32)
        # Texts that fit alone are no more than fit together: the first give their pages back.
        alone = [engine.embed([[5 + i]])[0] for i in range(9)]
        assert np.array_equal(engine.embed([[5 + i] for i in range(9)]), alone)
    flag = CancelFlag()
    flag.cancel()
    seen: list[tuple[int, int]] = []
    with Engine(converted("bert"), n_batch=200) as engine:
        with pytest.raises(CancelledError):
            engine.embed(texts, cancel=flag)
        engine.embed(texts[:2] * 30, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 2 and seen[-1] == (60, 60)
    assert seen == sorted(seen)


@pytest.mark.parametrize("name", ["bert", "nomic"])
@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("pooling_type", 4, UnsupportedModelError, r"found 4 \(rank, a reranker's head\)"),
        ("pooling_type", 77, UnsupportedModelError, "pooling_type: expected 0 .none.*found 77"),
        ("attention.causal", True, UnsupportedModelError, "causal: expected false"),
        ("attention.sliding_window", 8, UnsupportedModelError, "beside a sliding window"),
        ("attention.layer_norm_epsilon", None, ModelFormatError, "expected a value, found no"),
        ("attention.head_count", 0, ModelFormatError, "number of heads: expected 1"),
        ("embedding_length", 2**31, ModelFormatError, "embedding length: expected 1 to"),
        ("context_length", 2**30, ModelFormatError, "context length: expected 1 to"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    converted: Converted,
    tmp_path: Path,
    name: str,
    key: str,
    value: Any,
    error: type[Exception],
    message: str,
) -> None:
    def change(model: Model) -> None:
        at = f"{model.metadata['general.architecture']}.{key}"
        model.metadata.pop(at, None)
        if value is not None:
            model.metadata[at] = value

    path = rewritten(converted(name), tmp_path / "out.gguf", change)
    with pytest.raises(error, match=message):
        Engine(path)


@pytest.mark.parametrize(
    ("tensor", "rows", "message"),
    [
        ("position_embd.weight", 100, r"expected shape \[32, 256\], found \[32, 100"),
        ("position_embd.weight", 0, "position_embd.weight: expected a tensor"),
        ("token_embd_norm.bias", 0, "token_embd_norm.bias: expected a tensor"),
        ("blk.1.layer_output_norm.bias", 0, "layer_output_norm.bias: expected a tensor"),
        ("cls.weight", 8, "cls.weight: expected only weights that architecture bert"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    converted: Converted, tmp_path: Path, tensor: str, rows: int, message: str
) -> None:
    def change(model: Model) -> None:
        model.tensors.pop(tensor, None)
        if rows:
            model.tensors[tensor] = np.zeros((rows, 32), np.float32)

    path = rewritten(converted("bert"), tmp_path / "out.gguf", change)
    with pytest.raises((ModelFormatError, UnsupportedModelError), match=message):
        Engine(path)


def test_a_file_without_types_or_pooling_opens(converted: Converted, tmp_path: Path) -> None:
    def change(model: Model) -> None:
        types = model.tensors.pop("token_types.weight")
        model.tensors["token_embd.weight"] += types[0]
        model.metadata.pop("bert.pooling_type")

    path = rewritten(converted("bert"), tmp_path / "out.gguf", change)
    with Engine(path) as engine, Engine(converted("bert")) as whole:
        assert engine.info.pooling is None
        found, expected = engine.embed("a", pooling="mean"), whole.embed("a")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


# ---- checkpoints of other kinds


def source_of(name: str, folder: Path) -> Path:
    """A copy of a golden that a test may change."""
    shutil.copytree(GOLDEN / name, folder)
    return folder


def change_json(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text("utf-8"))
    content.update(values)
    path.write_text(json.dumps(content))


def same_vectors(folder: Path, path: Path) -> None:
    out = folder.with_suffix(".gguf")
    converters.convert(folder, out, dtype="f32", overwrite=True)
    with Engine(out) as found, Engine(path) as expected:
        assert np.array_equal(found.embed("the cat"), expected.embed("the cat"))


def test_old_names_of_tensors_are_known(converted: Converted, tmp_path: Path) -> None:
    folder = source_of("bert", tmp_path / "bert")
    stored = read_safetensors(folder / "model.safetensors")
    old = {}
    for name, row in stored.items():
        if ".LayerNorm." in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        old[f"bert.{name}"] = row
    old["cls.predictions.bias"] = ("BF16", [2], bytes(4))
    old["bert.embeddings.position_ids"] = ("I64", [1, 1], bytes(8))
    write_safetensors(folder / "model.safetensors", old)
    change_json(folder / "config.json", architectures=["BertForMaskedLM"])
    same_vectors(folder, converted("bert"))


def test_both_spellings_of_nomics_model_are_known(converted: Converted, tmp_path: Path) -> None:
    folder = source_of("nomic", tmp_path / "nomic")
    stored = read_safetensors(folder / "model.safetensors")
    split = {}
    for name, (dtype, shape, raw) in stored.items():
        plain = name.replace("encoder.layers", "layers").replace(
            "attn.out_proj", "self_attn.o_proj"
        )
        if "Wqkv" not in name:
            split[plain] = (dtype, shape, raw)
            continue
        size = len(raw) // 3
        for i, part in enumerate("qkv"):
            at = plain.replace("attn.Wqkv", f"self_attn.{part}_proj")
            split[at] = (dtype, [shape[0] // 3, shape[1]], raw[i * size : (i + 1) * size])
    write_safetensors(folder / "model.safetensors", split)
    same_vectors(folder, converted("nomic"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    own = {
        "architectures": ["NomicBertModel"],
        "model_type": "nomic_bert",
        "n_embd": 32,
        "n_head": 4,
        "n_inner": 48,
        "n_layer": 2,
        "n_positions": 8192,
        "max_trained_positions": 256,
        "layer_norm_epsilon": 1e-12,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "activation_function": "swiglu",
        "qkv_proj_bias": False,
        "vocab_size": config["vocab_size"],
        "type_vocab_size": 2,
    }
    (folder / "config.json").write_text(json.dumps(own))
    same_vectors(folder, converted("nomic"))


def test_a_model_in_a_folder_of_its_own_is_found(converted: Converted, tmp_path: Path) -> None:
    folder = tmp_path / "outer"
    inner = source_of("bert", folder / "0_Transformer")
    modules = json.loads((inner / "modules.json").read_text("utf-8"))
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    shutil.move(inner / "1_Pooling", folder / "1_Pooling")
    (inner / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    summary = converters.convert(folder, tmp_path / "out.gguf", dtype="f32")
    assert any("cuts texts to 128 tokens" in note for note in summary.notes)
    with Engine(tmp_path / "out.gguf") as engine:
        assert engine.info.pooling == "mean"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bert", {"hidden_act": "gelu_new"}, "hidden_act: expected 'gelu'"),
        ("bert", {"position_embedding_type": "relative_key"}, "expected 'absolute'"),
        ("bert", {"is_decoder": True}, "is_decoder: expected False"),
        ("bert", {"num_attention_heads": 5}, "hidden_size: expected an even number for each of 5"),
        ("bert", {"type_vocab_size": 3}, "expected shape .3, 32. as .* says, found .2, 32."),
        ("bert", {"num_hidden_layers": 1}, "expected only tensors of this architecture"),
        ("bert", {"num_hidden_layers": 3}, "expected shape .*, found no such tensor"),
        (
            "bert",
            {"quantization_config": {"quant_method": "x"}},
            r"quant_method: expected weights .*found 'x'",
        ),
        ("nomic", {"moe_every_n_layers": 2}, "moe_every_n_layers: expected 0"),
        ("nomic", {"activation_function": "gelu"}, "activation_function: expected 'swiglu'"),
        ("nomic", {"head_dim": 4}, "head_dim: expected 8"),
        (
            "nomic",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e3}},
            "rope_type: expected 'default'",
        ),
    ],
)
def test_what_no_file_can_say_is_refused(
    tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    folder = source_of(name, tmp_path / name)
    change_json(folder / "config.json", **change)
    with pytest.raises(ConversionError, match=message):
        converters.convert(folder, tmp_path / "out.gguf")


def test_other_modules_and_poolings_are_refused(tmp_path: Path) -> None:
    folder = source_of("bert", tmp_path / "bert")
    pooling, modules = folder / "1_Pooling" / "config.json", folder / "modules.json"
    for content, message in (
        ({"pooling_mode_max_tokens": True}, "found pooling_mode_max_tokens"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "expected one of"),
        ({"pooling_mode": "weighted"}, "found weighted"),
    ):
        pooling.write_text(json.dumps(content))
        with pytest.raises(ConversionError, match=message):
            converters.convert(folder, tmp_path / "out.gguf")
    pooling.write_text('{"pooling_mode": "cls"}')
    converters.convert(folder, tmp_path / "out.gguf")
    with Engine(tmp_path / "out.gguf") as engine:
        assert engine.info.pooling == "cls"
    for rows, message in (
        ([{"type": "x.models.Dense", "path": "2_Dense"}], "found 'x.models.Dense'"),
        ([{"type": "x.models.Pooling", "path": "../.."}], "expected folders inside this one"),
        ([{"path": ""}], "expected objects with type and path"),
        ({}, "expected a JSON list"),
    ):
        modules.write_text(json.dumps(rows))
        with pytest.raises(ConversionError, match=message):
            converters.convert(folder, tmp_path / "other.gguf")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("normalizer", {"type": "Lowercase"}, "normalizer: type: expected 'BertNormalizer'"),
        ("normalizer", {"clean_text": False}, "normalizer: clean_text: expected True"),
        ("normalizer", {"lowercase": 3}, "lowercase: expected true or false"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer: type: expected 'BertPre"),
        ("model", {"continuing_subword_prefix": "@"}, "continuing_subword_prefix: expected '##'"),
    ],
)
def test_word_pieces_of_another_kind_are_refused(
    tmp_path: Path, part: str, change: dict[str, Any], message: str
) -> None:
    folder = source_of("bert", tmp_path / "bert")
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    content[part].update(change)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConversionError, match=message):
        converters.convert(folder, tmp_path / "out.gguf")


# ---- the command line


def test_the_command_line_writes_the_same_numbers(
    converted: Converted, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(converted("bert"))
    with Engine(path) as engine:
        expected = engine.embed(["the cat", "a"])
        rows = engine.embed("the cat", pooling="none", normalize=False)[0]
    assert main(["embed", path, "-p", "the cat", "-p", "a"]) == 0
    out, err = capfd.readouterr()
    assert err == ""  # nothing but vectors in a pipe
    assert np.array_equal(np.loadtxt(out.splitlines(), dtype=np.float32), expected)
    (tmp_path / "texts").write_bytes(b"the cat\r\na\n")
    assert main(["embed", path, "--file", str(tmp_path / "texts"), "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)["embeddings"]
    assert np.array_equal(np.array(listed, np.float32), expected)
    npy = tmp_path / "out.npy"
    assert main(["embed", path, "-p", "the cat", "-p", "a", "--npy", str(npy)]) == 0
    assert np.array_equal(np.load(npy), expected)
    more = ["-p", "the cat", "--pooling", "none", "--no-normalize"]
    assert main(["embed", path, *more]) == 0
    out = capfd.readouterr().out
    assert np.array_equal(np.loadtxt(out.splitlines(), dtype=np.float32), rows)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-p", ""], 2, "texts[0]: expected a text"),
        (["-p", "a", "--file", "x"], 2, "expected one of -p and --file"),
        (["--file", "/nowhere"], 1, "/nowhere: No such file"),
        (["-p", "a", "--pooling", "none", "--npy", "x"], 2, "--npy: expected a vector for each"),
        (["-p", "a", "--npy", "/nowhere/x"], 1, "/nowhere/x: No such file"),
        (["-p", "a", "--pooling", "max"], 2, "Invalid value for '--pooling'"),
    ],
)
def test_wrong_usage_is_one_line(
    converted: Converted,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert main(["embed", str(converted("bert")), *arguments]) == code
    err = capfd.readouterr().err
    assert message in err and err.count("\n") == 1
