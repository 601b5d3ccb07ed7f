"""Quantizing: algebra against numpy, layers by themselves, files with less error."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import pyengine
import quantizers
from pyengine import ArgumentError, Engine, ModelFile, ModelFileError, dequantize
from pyengine._layers import Tap, run_layers
from quantizers._algebra import Algebra


def make_moments(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mixed = np.eye(n) + 0.3 * rng.standard_normal((n, n))
    x = (rng.standard_normal((700, n)) @ mixed).astype(np.float32)
    return x, x.T @ x


def test_algebra_is_that_of_numpy() -> None:
    x, moments = make_moments(160)
    y = np.random.default_rng(1).standard_normal((70, 160)).astype(np.float32)
    with Algebra(2) as algebra:
        sums = np.zeros((160, 160), np.float32)
        algebra.add_moments(sums, x, x)
        assert np.allclose(sums, moments, rtol=1e-4, atol=0.1)
        factor, damping = algebra.factor(sums, 0.01)
        damped = sums + damping * sums.diagonal().mean() * np.eye(160)
        upper = np.triu(factor)
        assert np.abs(upper @ upper.T - damped).max() < 1e-5 * np.abs(damped).max()
        assert np.abs(algebra.solve(y, factor) @ damped - y).max() < 1e-3
        assert np.allclose(algebra.product(y, y), y @ y.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "n"), [("Q4_0", 160), ("Q4_1", 160), ("Q8_0", 160), ("Q4_K", 256)]
)
def test_feedback_beats_search_with_any_number_of_threads(dtype: str, n: int) -> None:
    _, moments = make_moments(n)
    weights = np.random.default_rng(2).standard_normal((70, n)).astype(np.float32)
    found = []
    for n_threads in (1, 2):
        with Algebra(n_threads) as algebra:
            factor, _ = algebra.factor(moments, 0.01)
            found.append(algebra.round(weights, dtype, moments, factor, 2))
    assert (found[0].blocks == found[1].blocks).all()
    errors = weights - dequantize(found[0].blocks, dtype)
    error = float(((errors @ moments) * errors).sum())
    assert math.isclose(error, found[0].error, rel_tol=1e-2)
    importance = moments.diagonal().copy()
    searched = pyengine.quantize(weights, dtype, method="search", importance=importance)
    errors = weights - dequantize(searched, dtype)
    assert error < 0.7 * float(((errors @ moments) * errors).sum())


def test_moments_that_are_not_positive_are_damped() -> None:
    with Algebra(1) as algebra:
        ones = np.ones((64, 64), np.float32)
        _, damping = algebra.factor(ones, 0.0)
        assert damping > 0.0


def test_layer_by_layer_gives_the_same_bits() -> None:
    tokens = np.arange(3, 43, dtype=np.uint32)
    with Engine(n_ctx=64, n_threads=2) as engine, engine.session() as session:
        whole = engine.logits(tokens.tolist())
        x = np.empty((len(tokens), engine.info.d_model), np.float32)
        logits = np.empty((len(tokens), engine.n_vocab), np.float32)
        n_layers = engine.info.n_layers
        for layer in range(n_layers):
            run_layers(session, tokens, layer, layer + 1, x)
        run_layers(session, tokens, n_layers, n_layers + 1, x, logits=logits)
        assert (logits == whole).all()
        assert session.n_tokens == 0


def test_taps_see_inputs_and_stop() -> None:
    tokens = np.arange(3, 43, dtype=np.uint32)
    with Engine(n_ctx=64) as engine, engine.session() as session:
        names = [info.name for info in engine.file.tensors]
        d_model = engine.info.d_model
        x = np.empty((len(tokens), d_model), np.float32)
        run_layers(session, tokens, 0, 0, x)
        before = x.copy()
        rows = np.empty_like(x)
        residual = np.empty_like(x)
        sums, counts = np.zeros((1, d_model)), np.zeros(1, np.uint64)
        tap = Tap(names.index("blk.0.attn_q.weight"), rows, residual, sums, counts)
        run_layers(session, tokens, 0, 1, x, taps=[tap], ends_with_taps=True)
        assert tap.order == 1 and counts[0] == len(tokens)
        assert (residual == before).all() and (x == before).all()
        assert np.allclose(sums[0], (rows.astype(np.float64) ** 2).sum(0), rtol=1e-12)


def test_bad_layer_runs_are_refused() -> None:
    tokens = np.arange(3, 13, dtype=np.uint32)
    with Engine(n_ctx=64) as engine, engine.session() as session:
        x = np.empty((10, engine.info.d_model), np.float32)
        with pytest.raises(ArgumentError, match="range within 0 to"):
            run_layers(session, tokens, 0, 99, x)
        with pytest.raises(ArgumentError, match="expected x of"):
            run_layers(session, tokens, 0, 1, x[:5])
        session.feed([3])
        with pytest.raises(ArgumentError, match="empty session"):
            run_layers(session, tokens, 0, 1, x)


def _text(path: Path) -> Path:
    words = ["the", "little", "fox", "went", "home", "and", "saw", "a", "big", "tree", "again"]
    rng = np.random.default_rng(0)
    path.write_text(" ".join(rng.choice(words, 6000)))
    return path


def test_a_model_is_quantized(tmp_path: Path) -> None:
    text = _text(tmp_path / "text.txt")
    seen: list[str] = []
    made = {}
    for method in ("search", "gptq"):
        out = tmp_path / f"{method}.gguf"
        report = quantizers.quantize(
            _bundled(), out, dtype="q5_0", method=method, calibration=[text], tokens=4096,
            progress=lambda done, total, name: seen.append(name),
        )  # fmt: skip
        assert report.n_bytes == out.stat().st_size
        made[method] = report
        with ModelFile(out) as file:
            types = {info.name: info.dtype for info in file.tensors}
            assert types["blk.0.ffn_up.weight"] == "Q5_0"
            assert types["token_embd.weight"] == "Q8_0"
            assert file.metadata["general.file_type"] == 8
            assert "method" in file.metadata["pyengine.quantization"]
        with Engine(out, n_ctx=64) as engine:
            assert np.isfinite(engine.logits([3, 4, 5])).all()
    assert seen and not list(tmp_path.glob("*.partial"))
    assert len(made["gptq"].errors) == 8 * 7 + 1
    assert all(0 <= error < 0.2 for error in made["gptq"].errors.values())


def _bundled() -> Path:
    with Engine(n_ctx=32) as engine:
        return Path(engine.file.path)


def test_bad_input_leaves_nothing(tmp_path: Path) -> None:
    model, out = _bundled(), tmp_path / "out.gguf"
    (tmp_path / "short.txt").write_text("too short")
    for options, error, message in (
        ({"dtype": "f16"}, ArgumentError, "dtype: expected one of"),
        ({"method": "magic"}, ArgumentError, "method: expected one of"),
        ({"calibration": []}, ArgumentError, "expected a text file or more"),
        ({"calibration": [tmp_path / "none.txt"]}, ModelFileError, "none.txt"),
        ({"calibration": [tmp_path / "short.txt"]}, ArgumentError, "expected 4096 tokens or more"),
    ):
        with pytest.raises(error, match=message):
            quantizers.quantize(model, out, **options)
    out.write_text("mine")
    with pytest.raises(ModelFileError, match="found one"):
        quantizers.quantize(model, out, method="plain")
    assert out.read_text() == "mine"
    assert not list(tmp_path.glob("*.partial"))
