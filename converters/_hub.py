"""Checkpoints of the Hugging Face hub, fetched by `huggingface_hub` into its cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pyengine._errors import ArgumentError, DownloadError

PREFIX = "hf:"
_SPEC = re.compile(r"hf:(?P<name>[\w.-]+/(?P<model>[\w.-]+))(?:@(?P<revision>[^@\s]+))?")

_DESCRIPTIONS = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "modules.json",
        "quant_config.json",
        "quantize_config.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }
)
# How sentence-transformers makes a vector.
_POOLING = re.compile(r"\d+_Pooling/config\.json")
# The first kind that a model has is enough.
_WEIGHTS = (
    re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"),
    re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?"),
)


def model_name(spec: str) -> str:
    """What a model is called without its organisation.

    Raises:
        ArgumentError: Not like ``hf:org/name`` or ``hf:org/name@revision``.
    """
    name: str = _parsed(spec)["model"]
    return name


def fetch(spec: str) -> Path:
    """Brings the files that a conversion reads into the hub's cache, and nothing else.

    What is there already is not fetched again, and what was cut short goes on where it stopped.

    Args:
        spec: ``hf:org/name`` or ``hf:org/name@revision``.

    Returns:
        The folder of the files.

    Raises:
        ArgumentError: Another spelling.
        DownloadError: The extra is not installed, the hub cannot be reached and its files are
            not in the cache, or the model is not there or not open to the caller.
    """
    parts = _parsed(spec)
    name, revision = parts["name"], parts["revision"]
    try:
        import huggingface_hub as hub
        import huggingface_hub.errors as errors
    except ImportError as error:
        raise DownloadError(
            f"{spec}: expected the package huggingface_hub, found none: pip install 'pyengine[hub]'"
        ) from error
    try:
        info = hub.HfApi().model_info(name, revision=revision)
        wanted = needed([file.rfilename for file in info.siblings or ()])
        folder = hub.snapshot_download(name, revision=info.sha, allow_patterns=wanted)
    except Exception as error:
        told = _refusal(errors, spec, parts, error)
        if told is not None:
            raise told from error
        folder = _cached(hub, spec, parts, error)
    return Path(folder)


def needed(files: list[str]) -> list[str]:
    """Those of a model's files that a conversion reads."""
    weights: list[str] = []
    for pattern in _WEIGHTS:
        weights = weights or [file for file in files if pattern.fullmatch(file)]
    pooling = [file for file in files if _POOLING.fullmatch(file)]
    return sorted({*_DESCRIPTIONS.intersection(files), *pooling, *weights})


def _parsed(spec: str) -> dict[str, Any]:
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ArgumentError(f"source: expected hf:org/name or hf:org/name@revision, found {spec!r}")
    return dict(match.groupdict())


def _refusal(
    errors: Any, spec: str, parts: dict[str, Any], error: Exception
) -> DownloadError | ArgumentError | None:
    """What the hub's answer means; None where there was no answer."""
    name = parts["name"]
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"{spec}: expected access, found a gated model: accept its terms at "
            f"https://huggingface.co/{name} and run `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(
            f"{spec}: expected a revision of {name}, found none called {parts['revision']!r}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return DownloadError(
            f"{spec}: expected a model on the hub, found none of that name; "
            "a private one needs `hf auth login`"
        )
    if isinstance(error, errors.HFValidationError):
        return ArgumentError(f"source: expected a name that the hub allows, found {spec!r}")
    response = getattr(error, "response", None)
    if response is not None and not isinstance(error, errors.LocalEntryNotFoundError):
        return DownloadError(f"{spec}: expected files, found the hub's refusal: {error}")
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return DownloadError(f"{error.filename}: {error.strerror}")  # the disk, not the hub
    return None


def _cached(hub: Any, spec: str, parts: dict[str, Any], error: Exception) -> str:
    """The files of an earlier time, where the hub cannot be reached."""
    try:
        folder: str = hub.snapshot_download(
            parts["name"], revision=parts["revision"], local_files_only=True
        )
    except Exception:
        raise DownloadError(
            f"{spec}: expected the hub or files in its cache, found neither "
            f"({type(error).__name__}: {error}); run it again to go on where it stopped"
        ) from error
    return folder
