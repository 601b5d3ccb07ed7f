"""What a sentence-transformers folder says beside config.json: how texts become vectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from converters._json import read_list, read_object, read_optional
from pyengine._errors import ConversionError

# GGUF's numbers, behind the keys and the words that say so.
_MODES = {
    "pooling_mode_mean_tokens": 1,
    "pooling_mode_cls_token": 2,
    "pooling_mode_lasttoken": 3,
}
_WORDS = {"mean": 1, "cls": 2, "lasttoken": 3}


@dataclass
class Sentences:
    """What was found.

    Attributes:
        model: Where config.json and the weights lie.
        pooling: GGUF's number, or None where nothing is said.
        notes: What the user should know.
    """

    model: Path
    pooling: int | None = None
    notes: list[str] = field(default_factory=list)


def read_sentences(folder: Path) -> Sentences:
    """Reads modules.json and what it names; a folder without it is a plain checkpoint.

    Raises:
        ConversionError: A file is broken, or a module does what no GGUF file can say.
    """
    path = folder / "modules.json"
    found = Sentences(folder)
    if not path.is_file():
        return found
    for module in read_list(path):
        kind = module.get("type") if isinstance(module, dict) else None
        inside = module.get("path") if isinstance(module, dict) else None
        if not isinstance(kind, str) or not isinstance(inside, str):
            raise ConversionError(
                f"{path}: expected objects with type and path, found {str(module)[:80]}"
            )
        if PurePosixPath(inside).is_absolute() or ".." in PurePosixPath(inside).parts:
            raise ConversionError(f"{path}: expected folders inside this one, found {inside!r}")
        name = kind.rpartition(".")[2]
        if name == "Transformer":
            found.model = folder / inside
            _read_length(found)
        elif name == "Pooling":
            found.pooling = _pooling(folder / inside / "config.json")
        elif name != "Normalize":
            raise ConversionError(
                f"{path}: expected the modules Transformer, Pooling and Normalize, found {kind!r}"
            )
    return found


def _pooling(path: Path) -> int:
    config = read_object(path)
    modes = [key for key in config if key.startswith("pooling_mode_") and config[key] is True]
    word: Any = config.get("pooling_mode")
    if not modes and isinstance(word, str) and word in _WORDS:
        return _WORDS[word]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise ConversionError(
            f"{path}: expected one of {', '.join(_MODES)}, found {', '.join(modes) or word}"
        )
    return _MODES[modes[0]]


def _read_length(found: Sentences) -> None:
    stated = read_optional(found.model / "sentence_bert_config.json").get("max_seq_length")
    limit = read_optional(found.model / "config.json").get("max_position_embeddings")
    if isinstance(stated, int) and isinstance(limit, int) and stated < limit:
        found.notes.append(
            f"sentence-transformers cuts texts to {stated} tokens (max_seq_length); "
            f"the file takes texts of up to {limit}"
        )
