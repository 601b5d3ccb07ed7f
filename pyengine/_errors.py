"""Every exception that pyengine raises on purpose.

    PyengineError
    |-- ArgumentError(ValueError)            an argument is outside its range
    |-- ClosedError(ValueError)              the object was closed
    |-- ModelFileError(OSError)              a file cannot be opened, mapped or written
    |-- ModelFormatError(ValueError)         a file breaks its format or contradicts itself
    |-- UnsupportedModelError(ValueError)    a sound file needs a feature this build lacks
    |-- TokenizerError(ValueError)           no tokenizer, or one that does not fit
    |-- ChatTemplateError(ValueError)        no chat template, or one that is broken or refuses
    |-- ConversionError(ValueError)          a checkpoint cannot become a GGUF file
    |-- DownloadError(OSError)               a checkpoint cannot be fetched
    |-- TaskFileError(ValueError)            a file of questions is missing or not as expected
    |-- ContextFullError(ValueError)         more tokens than the context holds
    |-- OutOfMemoryError(MemoryError)        memory, or the KV budget, is spent
    |-- NumericError(ArithmeticError)        NaN or infinity where a number was expected
    `-- CancelledError(RuntimeError)         the caller asked to stop

Each message names the thing, what was expected and what was found.
"""

from __future__ import annotations


class PyengineError(Exception):
    """Base of every exception that pyengine raises on purpose."""


class ArgumentError(PyengineError, ValueError):
    """An argument is outside its range."""


class ClosedError(PyengineError, ValueError):
    """The engine, session or file was closed before this call."""


class ModelFileError(PyengineError, OSError):
    """A file cannot be opened, mapped or written."""


class ModelFormatError(PyengineError, ValueError):
    """A file breaks its format or contradicts itself."""


class UnsupportedModelError(PyengineError, ValueError):
    """The file is sound but needs a feature this build lacks; the message names it."""


class TokenizerError(PyengineError, ValueError):
    """The file holds no tokenizer, or one that does not fit."""


class ChatTemplateError(PyengineError, ValueError):
    """The file has no chat template, or one that is broken or refuses the messages."""


class ConversionError(PyengineError, ValueError):
    """A checkpoint cannot be turned into a GGUF file."""


class DownloadError(PyengineError, OSError):
    """A checkpoint cannot be fetched from the hub."""


class TaskFileError(PyengineError, ValueError):
    """A file of questions cannot be read, or a line of it is not as expected."""


class ContextFullError(PyengineError, ValueError):
    """More tokens than the context holds; nothing was dropped to make room."""


class OutOfMemoryError(PyengineError, MemoryError):
    """Memory, or the KV budget that the caller set, is spent."""


class NumericError(PyengineError, ArithmeticError):
    """NaN or infinity where a finite number was expected."""


class CancelledError(PyengineError, RuntimeError):
    """The caller asked the running call to stop."""
