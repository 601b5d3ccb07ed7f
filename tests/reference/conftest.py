"""Files that both reference suites read; each is converted once per run."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import checkpoints
import pytest

import converters

FIXTURES = os.environ.get("PYENGINE_FIXTURES")


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of the trained model and its texts."""
    if FIXTURES is None:
        pytest.skip("PYENGINE_FIXTURES names no folder of models and texts")
    return Path(FIXTURES)


@pytest.fixture(scope="session")
def valid_text(fixtures: Path) -> str:
    return (fixtures / "data" / "stories-valid.txt").read_text("utf-8")


@pytest.fixture(scope="session")
def stories(
    fixtures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, bool], Path]:
    """The trained model in a type, and whether without exceptions."""
    folder = tmp_path_factory.mktemp("stories")

    def make(dtype: str, pure: bool = False) -> Path:
        out = folder / f"stories-{dtype}{'-pure' if pure else ''}.gguf"
        if not out.exists():
            converters.convert(fixtures / "models" / "stories-29m", out, dtype=dtype, pure=pure)
        return out

    return make


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Checkpoint folder and F32 file of one of ``checkpoints.VARIANTS``."""
    folder = tmp_path_factory.mktemp("tiny")

    @cache
    def make(name: str) -> tuple[Path, Path]:
        source = folder / name.replace(" ", "-")
        checkpoints.save_checkpoint(source, checkpoints.VARIANTS[name])
        out = source.with_suffix(".gguf")
        converters.convert(source, out, dtype="f32")
        return source, out

    return make
