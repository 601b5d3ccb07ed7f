"""The seam to the compiled core: calls, and the one translation of its errors.

Everything else in the package goes through :func:`call`; only the handle modules
(`_file`, `_engine`, `_session`, `_sampler`) hold pointers.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from pyengine import _errors
from pyengine._ffi import ffi, lib

__all__ = ["EXCEPTIONS", "ClosableHandle", "Handle", "call", "ffi", "lib"]

EXCEPTIONS: dict[int, type[_errors.PyengineError]] = {
    lib.PE_ERR_ARG: _errors.ArgumentError,
    lib.PE_ERR_IO: _errors.ModelFileError,
    lib.PE_ERR_FORMAT: _errors.ModelFormatError,
    lib.PE_ERR_UNSUPPORTED: _errors.UnsupportedModelError,
    lib.PE_ERR_NOMEM: _errors.OutOfMemoryError,
    lib.PE_ERR_CONTEXT: _errors.ContextFullError,
    lib.PE_ERR_NUMERIC: _errors.NumericError,
    lib.PE_ERR_CANCELLED: _errors.CancelledError,
}

if lib.pe_api_version() != lib.PE_API_VERSION:  # a stale build beside new Python code
    raise ImportError(
        f"pyengine core: expected API version {lib.PE_API_VERSION}, "
        f"found {lib.pe_api_version()}: reinstall pyengine"
    )


class Handle:
    """Base of what holds a core object: copying one would make two owners of it."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuses copies and pickles."""
        raise TypeError(f"{type(self).__name__}: expected to stay one object, found a copy of it")


class ClosableHandle(Handle):
    """A handle that a ``with`` block closes."""

    def close(self) -> None:
        """Gives back what the object holds; closing twice is allowed."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def call(function: Any, *args: Any) -> None:
    """Calls a core function whose last parameter is its error record.

    The interpreter lock is released meanwhile.

    Raises:
        PyengineError: The exception that belongs to the status, with its message.
    """
    error = ffi.new("pe_error *")
    status = function(*args, error)
    if status != lib.PE_OK:
        message = ffi.string(error.message).decode("utf-8", "replace")
        raise EXCEPTIONS.get(status, _errors.PyengineError)(message)
