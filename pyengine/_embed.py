"""Texts into vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pyengine._arguments import choice, instance
from pyengine._errors import ArgumentError, ContextFullError, PyengineError
from pyengine._generate import Progress
from pyengine._info import POOLINGS
from pyengine._native import call, ffi, lib
from pyengine._session import CancelFlag, token_array

if TYPE_CHECKING:
    from pyengine._engine import Engine

Texts = str | Sequence[str] | Sequence[Sequence[int]]
Vectors = npt.NDArray[np.float32]
Pooling = Literal["none", "mean", "cls", "last"]
_Ids = npt.NDArray[np.uint32]


def embed(
    engine: Engine,
    texts: Texts,
    pooling: Pooling | None,
    normalize: bool,
    parse_special: bool,
    cancel: CancelFlag | None,
    progress: Progress | None,
) -> Vectors | list[Vectors]:
    """See :meth:`Engine.embed`."""
    info = engine.info
    instance("normalize", normalize, bool, "a bool")
    if cancel is not None:
        instance("cancel", cancel, CancelFlag, "a CancelFlag")
    chosen = info.pooling if pooling is None else pooling
    if chosen is None:
        raise ArgumentError(
            f"pooling: expected one of {', '.join(POOLINGS)}, since {engine.file.path} names "
            "none, found None"
        )
    params = ffi.new("pe_embed_params *")
    params.struct_bytes = ffi.sizeof("pe_embed_params")
    params.pooling = choice("pooling", chosen, POOLINGS)
    params.normalize = normalize
    ids = [
        _token_ids(engine, text, f"texts[{i}]", parse_special)
        for i, text in enumerate(_listed(texts))
    ]
    flag = cancel.pointer if cancel is not None else ffi.NULL
    per_token = chosen == "none"
    widths = [len(part) if per_token else 1 for part in ids]
    out = [np.empty((n, info.d_model), np.float32) for n in widths] if per_token else []
    whole = np.empty((0 if per_token else len(ids), info.d_model), np.float32)
    for begin, end in _groups(ids, info.n_batch):
        feeds = ffi.new("pe_text[]", end - begin)
        for i in range(begin, end):
            feeds[i - begin].tokens = ffi.cast("const uint32_t *", ids[i].ctypes.data)
            feeds[i - begin].n_tokens = len(ids[i])
            room = out[i] if per_token else whole[i]
            feeds[i - begin].vectors = ffi.cast("float *", room.ctypes.data)
        params.first = begin
        with engine.lock:
            call(lib.pe_engine_embed, engine.handle, feeds, end - begin, params, flag)
        if progress is not None:
            progress(end, len(ids))
    return out if per_token else whole


def _listed(texts: Any) -> Any:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes) or not isinstance(texts, Sequence | np.ndarray):
        raise ArgumentError(
            f"texts: expected a text or a sequence of them, found {type(texts).__name__}"
        )
    return texts


def _token_ids(engine: Engine, text: Any, name: str, parse_special: bool) -> _Ids:
    """The ids of one text, checked."""
    tokens = text
    if isinstance(text, str):
        if not text:
            raise ArgumentError(f"{name}: expected a text, found an empty one")
        try:
            tokens = engine.tokenize(text, parse_special=parse_special)
        except PyengineError as error:
            raise type(error)(f"{name}: {error}") from None
    elif not isinstance(text, Sequence | np.ndarray):
        raise ArgumentError(f"{name}: expected a text or token ids, found {type(text).__name__}")
    ids: _Ids = token_array(tokens, engine.n_vocab, name=name)
    if len(ids) > engine.n_ctx:
        raise ContextFullError(
            f"{name}: expected at most the {engine.n_ctx} tokens of the context, found {len(ids)}"
        )
    return ids


def _groups(ids: Sequence[_Ids], n_batch: int) -> Iterator[tuple[int, int]]:
    """Runs of texts that fill a batch: Ctrl-C and progress come through between them."""
    begin, n_tokens = 0, 0
    for i, part in enumerate(ids):
        if i > begin and n_tokens + len(part) > n_batch:
            yield begin, i
            begin, n_tokens = i, 0
        n_tokens += len(part)
    if begin < len(ids):
        yield begin, len(ids)
