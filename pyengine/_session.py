"""One timeline of tokens: feed, fork, rewind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pyengine._arguments import choice, instance, integer
from pyengine._errors import ArgumentError, ClosedError
from pyengine._native import ClosableHandle, Handle, call, ffi, lib

if TYPE_CHECKING:
    from pyengine._engine import Engine

Logits = npt.NDArray[np.float32]


class CancelFlag(Handle):
    """Stops a running call from another thread, within about one layer's time.

    Pass it to :meth:`Engine.generate` or :meth:`Session.feed`, and call
    :meth:`cancel` from anywhere. A raised flag stays raised.
    """

    def __init__(self) -> None:
        self._flag = ffi.new("int32_t *")

    def cancel(self) -> None:
        """Raises the flag."""
        self._flag[0] = 1

    @property
    def is_cancelled(self) -> bool:
        """Whether the flag is raised."""
        return bool(self._flag[0])

    @property
    def pointer(self) -> Any:
        """The core's view, for this package's own use."""
        return self._flag


class Session(ClosableHandle):
    """One timeline of tokens in an engine, made by :meth:`Engine.session`.

    Memory is taken in pages as tokens arrive. Feeding tokens at once, one by one or
    cut anywhere gives the same bits, and so do forks and rewinds. Where the model has
    recurrent layers, a session also holds a state and checkpoints of it. Calls from several
    threads wait for each other; sessions of one engine may be used side by side.
    """

    def __init__(self, engine: Engine, handle: Any) -> None:
        self._engine = engine
        self._handle = ffi.gc(handle, lib.pe_session_free)
        self._tokens: list[int] = []

    def close(self) -> None:
        """Gives the session's pages back; closing twice is allowed."""
        if self._engine.is_forked:
            return
        with self._engine.lock:
            if self._handle is not None:
                ffi.release(self._handle)
                self._handle = None

    def check_engine(self, engine: Engine) -> None:
        """Refuses a session of another engine, for this package's own use."""
        if self._engine is not engine:
            raise ArgumentError("session: expected one of this engine, found another engine's")

    @property
    def engine(self) -> Engine:
        """The engine that made it."""
        return self._engine

    @property
    def handle(self) -> Any:
        """The core's object, for this package's own use."""
        if self._handle is None:
            raise ClosedError("session: expected it open, found it closed")
        return self._handle

    @property
    def n_vocab(self) -> int:
        """Width of its rows of logits."""
        return self._engine.n_vocab

    @property
    def n_tokens(self) -> int:
        """Tokens held."""
        with self._engine.lock:
            return int(lib.pe_session_n_tokens(self.handle))

    @property
    def tokens(self) -> list[int]:
        """The ids held, in order; a copy."""
        with self._engine.lock:
            return list(self._tokens)

    def feed(
        self,
        tokens: Sequence[int] | npt.NDArray[np.integer[Any]],
        *,
        logits: Literal["none", "last", "all"] = "last",
        cancel: CancelFlag | None = None,
    ) -> Logits:
        """Appends tokens and gives logits.

        Args:
            tokens: Token ids, at least one.
            logits: For which of them.
            cancel: Stops the call; the session then holds what it held before.

        Returns:
            Float32 of shape ``[n, n_vocab]``, n being 0, 1 or ``len(tokens)``.

        Raises:
            ArgumentError: No token, or an id outside the vocabulary.
            ContextFullError: More tokens than the context holds.
            OutOfMemoryError: Memory or the KV budget is spent.
            NumericError: A logit is NaN or infinite.
            CancelledError: ``cancel`` was raised.
        """
        ids = token_array(tokens, self._engine.n_vocab)
        n_rows = choice("logits", logits, {"none": 0, "last": 1, "all": len(ids)})
        if cancel is not None:
            instance("cancel", cancel, CancelFlag, "a CancelFlag")
        return feed_several(self._engine, [(self, ids, n_rows)], cancel)

    def fork(self) -> Session:
        """A second timeline with the same past, which shares its pages until written."""
        out = ffi.new("pe_session **")
        with self._engine.lock:
            call(lib.pe_session_fork, out, self.handle)
            other = self._engine.adopt(Session(self._engine, out[0]))
            other._tokens = list(self._tokens)
            return other

    def rewind(self, n_tokens: int) -> None:
        """Drops everything behind the first n_tokens.

        Where the model has recurrent layers, the next feed first computes the tokens behind the
        nearest checkpoint again: fewer than twice as many as were dropped and 64, more where
        ``max_kv_bytes`` left no room for checkpoints.

        Raises:
            ArgumentError: The session holds fewer.
        """
        with self._engine.lock:
            handle = self.handle
            held = int(lib.pe_session_n_tokens(handle))
            n_tokens = integer("n_tokens", n_tokens, 0, held)
            call(lib.pe_session_rewind, handle, n_tokens)
            del self._tokens[n_tokens:]


def feed_together(engine: Engine, sessions: Sequence[Session], token: int) -> Logits:
    """Appends one token to each of several sessions in one pass over the weights.

    Returns:
        Float32 of shape ``[len(sessions), n_vocab]``.
    """
    ids = token_array([token], engine.n_vocab)
    return feed_several(engine, [(session, ids, 1) for session in sessions])


def feed_several(
    engine: Engine,
    feeds: Sequence[tuple[Session, npt.NDArray[np.uint32], int]],
    cancel: CancelFlag | None = None,
) -> Logits:
    """Appends tokens to each of several sessions, with as few passes over the weights.

    Args:
        engine: Theirs.
        feeds: Session, its tokens as :func:`token_array` gives them, and for how many of the
            last of these logits are wanted.
        cancel: Stops the call; the sessions then hold what they held before.

    Returns:
        Float32, a row for each wanted token, in order.

    Raises:
        As :meth:`Session.feed`.
    """
    out = np.empty((sum(n_rows for _, _, n_rows in feeds), engine.n_vocab), np.float32)
    raw = ffi.new("pe_feed[]", len(feeds))
    flag = cancel.pointer if cancel is not None else ffi.NULL
    begin = 0
    with engine.lock:
        for feed, (session, ids, n_rows) in zip(raw, feeds, strict=True):
            feed.session = session.handle
            feed.tokens = ffi.cast("const uint32_t *", ids.ctypes.data)
            feed.n_tokens, feed.n_logits = len(ids), n_rows
            rows = out[begin : begin + n_rows]
            feed.logits = ffi.cast("float *", rows.ctypes.data) if n_rows else ffi.NULL
            begin += n_rows
        call(lib.pe_engine_forward, engine.handle, raw, len(feeds), flag)
        for session, ids, _ in feeds:
            session._tokens.extend(ids.tolist())
    return out


def token_array(
    tokens: Sequence[int] | npt.NDArray[np.integer[Any]], n_vocab: int, *, name: str = "tokens"
) -> npt.NDArray[np.uint32]:
    """Token ids as the core takes them.

    Raises:
        ArgumentError: Not a flat sequence of ids of the vocabulary.
    """
    if isinstance(tokens, str | bytes):
        raise ArgumentError(f"{name}: expected integers, found {type(tokens).__name__}")
    try:
        ids = np.asarray(tokens)
    except ValueError as error:  # rows of different lengths
        raise ArgumentError(f"{name}: expected a flat sequence of integers: {error}") from None
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ArgumentError(
            f"{name}: expected a flat sequence of integers, found shape {ids.shape} of {ids.dtype}"
        )
    if ids.size == 0:
        raise ArgumentError(f"{name}: expected 1 token or more, found none")
    wrong = (ids < 0) | (ids >= n_vocab)
    if wrong.any():
        at = int(wrong.argmax())
        raise ArgumentError(
            f"{name}[{at}]: expected an id from 0 to {n_vocab - 1}, found {ids[at]}"
        )
    return np.ascontiguousarray(ids, np.uint32)
