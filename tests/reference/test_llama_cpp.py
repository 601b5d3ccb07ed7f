"""Files that we write run in llama.cpp, and files that it writes run here, with equal results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import checkpoints
import gguf
import llama_cpp
import numpy as np
import pytest

import converters
from pyengine import Engine

Array = np.ndarray[Any, Any]
Stories = Callable[..., Path]

WINDOW = 512
N_WINDOWS = 6
WRITTEN = [
    ("f32", False),
    ("f16", False),
    ("bf16", False),
    ("q8_0", False),
    ("q4_0", False),
    ("q4_1", False),
    ("q4_0", True),
    ("q4_1", True),
    ("q6_k", False),
    ("q5_k", False),
    ("q5_1", False),
    ("q5_0", True),
    ("q4_k", False),
    ("q4_k", True),
    ("iq4_xs", False),
    ("iq4_nl", False),
    ("mxfp4", False),
    ("q3_k", False),
    ("q2_k", True),
]
FTYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 7}
# Those of which every matrix is of the type named, if it is told to be pure.
PURE_FTYPES = {
    **FTYPES,
    "q5_0": 8,
    "q5_1": 9,
    "q2_k": 10,
    "q3_k": 11,
    "q4_k": 14,
    "q5_k": 16,
    "q6_k": 18,
    "iq4_nl": 25,
    "iq4_xs": 30,
}
TEXTS = [
    "Hello, world! It's  we'll\n\n 3.14 x",
    " leading and trailing ",
    "caf\u00e9 \u20ac \u65e5\u672c\u8a9e \U0001f600\u200d\U0001f469",
    "\ttabs\r\nand \u00a0 spaces   ",
    "<|endoftext|> spelled out",
    "",
]


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[llama_cpp.Llama]:
    model = llama_cpp.Llama(
        str(path),
        n_ctx=WINDOW,
        n_batch=WINDOW,
        n_ubatch=WINDOW,
        logits_all=True,
        verbose=False,
        **options,
    )
    try:
        yield model
    finally:
        model.close()


def logits(model: llama_cpp.Llama, tokens: list[int]) -> Array:
    model.reset()
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)])


def perplexity(path: Path, text: str) -> tuple[float, int]:
    """llama.cpp's perplexity of a text by the rule of its own tool, and the tokens scored."""
    with opened(path) as model:
        begin = llama_cpp.llama_vocab_get_add_bos(llama_cpp.llama_model_get_vocab(model.model))
        ids = model.tokenize(text.encode(), add_bos=begin, special=False)
        losses: list[float] = []
        for i in range(len(ids) // WINDOW):
            part = ids[i * WINDOW : (i + 1) * WINDOW]
            if begin:
                part[0] = model.token_bos()
            rows = logits(model, part).astype(np.float64)
            rows -= rows.max(axis=1, keepdims=True)
            scores = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
            losses += [-scores[at - 1, part[at]] for at in range(WINDOW // 2 + 1, WINDOW)]
    return math.exp(np.mean(losses)), len(losses)


@pytest.fixture(scope="module")
def text(valid_text: str) -> str:
    """Some more than the windows that are scored."""
    return valid_text[: N_WINDOWS * WINDOW * 4]


@pytest.fixture(scope="module")
def theirs(
    stories: Stories, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, bool], Path]:
    """Our 16-bit file after llama.cpp's own quantizer."""
    folder = tmp_path_factory.mktemp("theirs")

    @cache
    def make(dtype: str, pure: bool) -> Path:
        out = folder / f"{dtype}{'-pure' if pure else ''}.gguf"
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.pure, params.nthread = FTYPES[dtype], pure, 2
        status = llama_cpp.llama_model_quantize(
            str(stories("f16")).encode(), str(out).encode(), params
        )
        assert status == 0
        return out

    return make


@pytest.mark.parametrize(("dtype", "pure"), WRITTEN)
def test_files_that_we_write_have_the_same_perplexity_there(
    stories: Stories, text: str, dtype: str, pure: bool
) -> None:
    path = stories(dtype, pure)
    expected, n_scored = perplexity(path, text)
    with Engine(path) as engine:
        found = engine.perplexity(text, window=WINDOW)
    assert found.n_windows >= N_WINDOWS - 1
    assert found.n_tokens == n_scored
    assert found.value == pytest.approx(expected, rel=0.005)


def test_files_of_mixed_types_have_the_same_perplexity_there(
    fixtures: Path, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "mixed.gguf"
    types = {"blk.*.ffn_down": "q6_k", "blk.0.*": "q8_0", "token_embd": "q5_k"}
    converters.convert(fixtures / "models" / "stories-29m", path, dtype="q3_k", tensor_types=types)
    expected, n_scored = perplexity(path, text)
    with Engine(path) as engine:
        found = engine.perplexity(text, window=WINDOW)
    assert found.n_tokens == n_scored
    assert found.value == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("pure", [False, True], ids=["default", "pure"])
@pytest.mark.parametrize("dtype", FTYPES)
def test_files_that_it_quantizes_have_the_same_perplexity_here(
    theirs: Callable[[str, bool], Path], text: str, dtype: str, pure: bool
) -> None:
    path = theirs(dtype, pure)
    expected, n_scored = perplexity(path, text)
    with Engine(path) as engine:
        types = {tensor.name: tensor.dtype for tensor in engine.file.tensors}
        if dtype != "q8_0":
            embedding = dtype.upper() if pure else "Q6_K"
            assert types["token_embd.weight"] == embedding
        found = engine.perplexity(text, window=WINDOW)
    assert found.n_tokens == n_scored
    assert found.value == pytest.approx(expected, rel=0.005)


def test_its_8_bit_file_gives_the_same_bits_as_ours(
    stories: Stories, theirs: Callable[[str, bool], Path]
) -> None:
    with Engine(stories("q8_0")) as ours, Engine(theirs("q8_0", True)) as its:
        for tensor, other in zip(
            sorted(ours.file.tensors, key=lambda t: t.name),
            sorted(its.file.tensors, key=lambda t: t.name),
            strict=True,
        ):
            assert (tensor.name, tensor.dtype, tensor.shape) == (
                other.name,
                other.dtype,
                other.shape,
            )
        tokens = list(range(100))
        assert np.array_equal(ours.logits(tokens), its.logits(tokens))


@pytest.mark.parametrize("dtype", PURE_FTYPES)
def test_its_quantizer_writes_the_bytes_of_our_converter(
    stories: Stories, tmp_path: Path, dtype: str
) -> None:
    out = tmp_path / "theirs.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = PURE_FTYPES[dtype], True, 2
    status = llama_cpp.llama_model_quantize(str(stories("f32")).encode(), str(out).encode(), params)
    assert status == 0
    its = {tensor.name: tensor for tensor in gguf.GGUFReader(out).tensors}
    ours = {tensor.name: tensor for tensor in gguf.GGUFReader(stories(dtype, True)).tensors}
    assert its.keys() == ours.keys()
    for name, tensor in ours.items():
        assert tensor.tensor_type == its[name].tensor_type, name
        assert np.array_equal(tensor.data, its[name].data), name


def test_both_tokenize_alike(stories: Stories, valid_text: str) -> None:
    path = stories("q4_0")
    with Engine(path) as engine, opened(path) as model:
        for sample in [valid_text, *TEXTS]:
            for special in (False, True):
                found = engine.tokenize(sample, add_special=False, parse_special=special)
                data = sample.encode()
                assert found == model.tokenize(data, add_bos=False, special=special), sample[:40]


# What it does not do, or not so. transformers is right about all of them.
DIFFERENT_THERE = {
    "mistral window": "has no windows in this architecture",
    "qwen2 window": "has no windows in this architecture",
    "qwen3 window": "has no windows and no output bias in this architecture",
    "gemma2 other": "derives the scale of scores from the size of the model",
    "gemma3 other": "derives the scale of scores from the size of the model",
    "phi3 longrope": "leaves Phi 3's windows out",
    "smollm3 other": "has no biases and knows one pattern of layers without rotation",
    "olmo2": "has no output bias in this architecture",
    "qwen3moe unnormed": "has no biases and always norms the experts' weights",
    "deepseek2": "adds up the best two experts of a group, with softmax, too",
    "deepseek2 lite": "knows models whose queries have no latent by their number of layers",
    "deepseek3 other": "the same, and scales scores where only angles are scaled",
    "granitehybrid dense": "cannot do without the convolution's bias",
    "qwen35 wide": "has keys and values of one width in linear attention",
    "gpt-oss other": "needs all biases and knows YaRN with whole pairs only",
    "gemma4 other": "takes the last two layers with keys and values to be windowed and not",
}


@pytest.mark.parametrize("name", [n for n in checkpoints.VARIANTS if n not in DIFFERENT_THERE])
def test_tiny_files_that_we_write_have_the_same_logits_there(
    tiny: Callable[[str], tuple[Path, Path]], name: str
) -> None:
    _, path = tiny(name)
    wide = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    with Engine(path) as engine, opened(path, **wide) as model:
        tokens = engine.tokenize(checkpoints.TEXT, add_special=False)[:200]
        found, expected = engine.logits(tokens), logits(model, tokens)
    # Its GELU is a table of 16-bit floats.
    bound = 1e-2 if name.startswith("gemma") else 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)
