"""Vectors against transformers' hidden states, and llama.cpp's on the same files, both ways."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import embedders
import llama_cpp
import numpy as np
import pytest
import tokenizers
import torch

import converters
from pyengine import Engine

Array = np.ndarray[Any, Any]
Made = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Checkpoint folder and F32 file of one of ``embedders.VARIANTS``."""
    folder = tmp_path_factory.mktemp("embedders")

    @cache
    def make(name: str) -> tuple[Path, Path]:
        source = folder / name.replace(" ", "-")
        embedders.save_embedder(source, embedders.VARIANTS[name])
        out = source.with_suffix(".gguf")
        converters.convert(source, out, dtype="f32")
        return source, out

    return make


def theirs(path: Path, texts: list[str]) -> list[Array]:
    """llama.cpp's vectors of length 1."""
    model = llama_cpp.Llama(
        str(path), embedding=True, n_ctx=256, n_batch=256, n_ubatch=256, verbose=False
    )
    try:
        return [np.array(model.embed(text, normalize=True)) for text in texts]
    finally:
        model.close()


@pytest.mark.parametrize("name", embedders.VARIANTS)
def test_states_and_vectors_equal_those_of_transformers(made: Made, name: str) -> None:
    source, path = made(name)
    words = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    model = embedders.load(source)
    with Engine(path) as engine:
        rows = engine.embed(embedders.TEXTS, pooling="none", normalize=False)
        for i, text in enumerate(embedders.TEXTS):
            tokens = words.encode(text).ids
            assert engine.tokenize(text) == tokens
            expected = embedders.hidden_states(model, tokens)
            assert expected.std() > 0.5  # so that 5e-5 says something
            np.testing.assert_allclose(rows[i], expected, rtol=0, atol=5e-5)
            for pooling in ("mean", "cls", "last"):
                found = engine.embed(text, pooling=pooling)[0]
                vector = embedders.pooled(expected, pooling)
                np.testing.assert_allclose(found, vector, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", embedders.VARIANTS)
def test_llama_cpp_gives_the_same_vectors(made: Made, name: str) -> None:
    _, path = made(name)
    with Engine(path) as engine:
        found = engine.embed(embedders.TEXTS)
    # GELU is a table of 16-bit floats there, for BERT of its tanh form, and so are a decoder's
    # keys and values.
    bound = 1e-5 if name.startswith("nomic") else 5e-4
    np.testing.assert_allclose(found, theirs(path, embedders.TEXTS), rtol=0, atol=bound)


@pytest.mark.parametrize("name", ["bert", "nomic"])
def test_its_8_bit_file_gives_the_same_bits_as_ours(tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    # Of 16 bits, so that both round the same numbers.
    embedders.save_embedder(source, embedders.VARIANTS[name], dtype=torch.float16)
    wide, ours, its = (tmp_path / f"{part}.gguf" for part in ("f16", "ours", "its"))
    converters.convert(source, wide, dtype="f16")
    converters.convert(source, ours, dtype="q8_0")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = 7, True, 2
    assert llama_cpp.llama_model_quantize(str(wide).encode(), str(its).encode(), params) == 0
    with Engine(ours) as engine, Engine(its) as other:
        types = {tensor.name: tensor.dtype for tensor in other.file.tensors}
        assert {tensor.name: tensor.dtype for tensor in engine.file.tensors} == types
        found, expected = engine.embed(embedders.TEXTS), other.embed(embedders.TEXTS)
        assert np.array_equal(found, expected)
