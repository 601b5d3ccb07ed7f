"""Large language models on the CPU that you already own.

::

    import pyengine

    with pyengine.Engine("model.gguf") as engine:
        for text in engine.generate("Once upon a time", stream=True):
            print(text, end="", flush=True)
"""

from pyengine._bundled import bundled_model
from pyengine._chat import ChatReply, ChatStream
from pyengine._divergence import Divergence
from pyengine._engine import Engine
from pyengine._errors import (
    ArgumentError,
    CancelledError,
    ChatTemplateError,
    ClosedError,
    ContextFullError,
    ConversionError,
    DownloadError,
    ModelFileError,
    ModelFormatError,
    NumericError,
    OutOfMemoryError,
    PyengineError,
    TaskFileError,
    TokenizerError,
    UnsupportedModelError,
)
from pyengine._evaluation import Evaluation, ModelScores, TaskScore, evaluate
from pyengine._file import ModelFile, TensorInfo
from pyengine._generate import Generation, Stream, Timings, TokenLogprob, Usage
from pyengine._info import EngineInfo
from pyengine._perplexity import Perplexity
from pyengine._quant import dequantize, find_lattice, quantize
from pyengine._reply import ToolCall
from pyengine._sampler import Sampler, Sampling
from pyengine._session import CancelFlag, Session
from pyengine._statistics import Difference, Mean, Quantile
from pyengine._tasks import Task
from pyengine._template import ChatTemplate, ChatTemplates
from pyengine._tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "CancelFlag",
    "CancelledError",
    "ChatReply",
    "ChatStream",
    "ChatTemplate",
    "ChatTemplateError",
    "ChatTemplates",
    "ClosedError",
    "ContextFullError",
    "ConversionError",
    "Difference",
    "Divergence",
    "DownloadError",
    "Engine",
    "EngineInfo",
    "Evaluation",
    "Generation",
    "Mean",
    "ModelFile",
    "ModelFileError",
    "ModelFormatError",
    "ModelScores",
    "NumericError",
    "OutOfMemoryError",
    "Perplexity",
    "PyengineError",
    "Quantile",
    "Sampler",
    "Sampling",
    "Session",
    "Stream",
    "Task",
    "TaskFileError",
    "TaskScore",
    "TensorInfo",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "TokenizerError",
    "ToolCall",
    "UnsupportedModelError",
    "Usage",
    "bundled_model",
    "dequantize",
    "evaluate",
    "find_lattice",
    "quantize",
]
