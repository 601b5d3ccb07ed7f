"""JSON files of a checkpoint, read so that a broken one is a named error and not a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyengine._errors import ConversionError


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the name {key!r} appears twice")
            seen.add(key)
    return found


def parse_object(data: bytes, where: str, *, unique: bool = False) -> dict[str, Any]:
    """Parses UTF-8 JSON whose top level is an object.

    Args:
        data: The bytes, which may come from anyone.
        where: What an error message calls the source.
        unique: Refuse a name that appears twice in one object; json would keep the last.

    Returns:
        The object.

    Raises:
        ConversionError: It is not UTF-8, not JSON, nested too deep or not an object.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ConversionError(f"{where}: expected JSON, found nesting too deep to read") from None
    except ValueError as error:
        raise ConversionError(f"{where}: expected JSON, found an error: {error}") from None
    if not isinstance(value, dict):
        raise ConversionError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def read_object(path: Path, *, unique: bool = False) -> dict[str, Any]:
    """Reads one JSON object from a file.

    Args:
        path: The file.
        unique: As for `parse_object`.

    Returns:
        The object.

    Raises:
        ConversionError: The content is not a JSON object.
        OSError: The file cannot be read.
    """
    return parse_object(path.read_bytes(), str(path), unique=unique)


def read_list(path: Path) -> list[Any]:
    """Reads one JSON list from a file; errors as `read_object`."""
    wrapped = b'{"list":' + path.read_bytes() + b"}"
    found = parse_object(wrapped, str(path))["list"]
    if not isinstance(found, list):
        raise ConversionError(f"{path}: expected a JSON list, found {type(found).__name__}")
    return found


def read_optional(path: Path) -> dict[str, Any]:
    """Reads one JSON object, or gives an empty one when there is no such file."""
    return read_object(path) if path.is_file() else {}
