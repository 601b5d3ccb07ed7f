"""The small model that ships with the package."""

from __future__ import annotations

from pathlib import Path

from pyengine._errors import ModelFileError

NAME = "stories-29m-q4_0.gguf"


def bundled_model() -> Path:
    """Path of the bundled story model, which the engine opens when none is named.

    Raises:
        ModelFileError: This installation was made without it.
    """
    path = Path(__file__).parent / "models" / NAME
    if not path.is_file():
        raise ModelFileError(f"{path}: expected the bundled model, found no such file")
    return path
