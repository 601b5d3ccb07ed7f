"""From a checkpoint folder to a GGUF file: the plan first, then the data, a piece at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from converters import _hub
from converters._checkpoint import Checkpoint
from converters._encoder_mapping import EncoderMapping, is_encoder
from converters._gguf_writer import Field, build_header, write_gguf
from converters._lora import Adapter
from converters._mapping import ModelMapping
from converters._merge import MergedCheckpoint
from converters._pieces import Pieces
from converters._sentence_transformers import Sentences, read_sentences
from converters._summary import Summary
from converters._tokenizer_fields import tokenizer_fields
from converters._types import AUTO, Choice
from pyengine._errors import ConversionError, ModelFileError

_QUANTIZATION_VERSION = 2


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    pure: bool = False,
    name: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    overwrite: bool = False,
    self_test: bool = True,
    tensor_types: Mapping[str, str] | None = None,
    lora: str | os.PathLike[str] | None = None,
) -> Summary:
    """Converts a Hugging Face checkpoint folder into one GGUF file.

    Weights that are quantized already, by GPTQ, AWQ and others, keep their integers and scales
    where a type of blocks holds them, which the summary tells tensor by tensor.

    Norms, biases and rotation factors stay F32. With a type of fewer bits the token embedding and
    the output head are kept at Q8_0. Rows that a type's blocks do not divide get one of smaller
    blocks, as the summary tells. The file appears under its name only when it is complete.

    Args:
        source: A folder with config.json, weights and a tokenizer; or ``hf:org/name``, perhaps
            with ``@revision``, which is fetched from the Hugging Face hub.
        out: The file to write.
        dtype: The type of matrices: "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0",
            "q4_k", "q4_1", "q4_0", "iq4_xs", "iq4_nl", "mxfp4", "q3_k" or "q2_k"; or "auto", the
            type of each matrix in the checkpoint, for one that is quantized the smallest that
            holds it. By default "auto" for quantized checkpoints and "q4_0" for others.
        pure: Use `dtype` for the embedding and the output head, too.
        name: What general.name says; by default the checkpoint's own name or its folder's.
        progress: Called with bytes done, bytes in all and the tensor's name.
        overwrite: Replace a file that is there.
        self_test: Store texts with the ids of the original tokenizer, which loading checks.
        tensor_types: Types of some matrices by patterns of their names in the file, such as
            ``{"blk.*.ffn_down": "q6_k"}``; ".weight" may be left out, and the first pattern that
            fits decides.
        lora: A folder with a LoRA adapter as PEFT saves it, which is merged into the weights;
            tokenizer and template are the base's.

    Returns:
        What was written.

    Raises:
        ArgumentError: `dtype`, or one of `tensor_types`, is none of those.
        DownloadError: The checkpoint cannot be fetched.
        ConversionError: The checkpoint is broken, incomplete or of an unsupported kind, or a
            pattern of `tensor_types` fits none of its matrices.
        ModelFileError: A file cannot be read or written, or the disk is too full.
    """
    dtypes = (dtype if dtype is not None else "q4_0", dtype if dtype is not None else AUTO)
    choices = [Choice(each, pure, tensor_types or {}) for each in dtypes]
    if isinstance(source, str) and source.startswith(_hub.PREFIX):
        name = _hub.model_name(source) if name is None else name
        source = _hub.fetch(source)
    folder, target = Path(source), Path(out)
    try:
        sentences = read_sentences(folder)
        with contextlib.ExitStack() as stack:
            if lora is None:
                checkpoint = stack.enter_context(Checkpoint(sentences.model))
            else:
                adapter = stack.enter_context(Adapter(Path(lora)))
                checkpoint = stack.enter_context(MergedCheckpoint(sentences.model, adapter))
            if target.resolve() in checkpoint.files:
                raise ConversionError(
                    f"{target}: expected another file than the checkpoint's own, found the same"
                )
            name = checkpoint.name if name is None else name
            choice = choices[bool(checkpoint.matrices)]
            return _convert(
                checkpoint, sentences, target, choice, name, progress, overwrite, self_test
            )
    except OSError as error:
        if isinstance(error, ModelFileError):
            raise
        culprit = error.filename if error.filename is not None else folder
        raise ModelFileError(f"{culprit}: {error.strerror or error}") from error


def _convert(
    checkpoint: Checkpoint,
    sentences: Sentences,
    target: Path,
    choice: Choice,
    name: str,
    progress: Callable[[int, int, str], None] | None,
    overwrite: bool,
    self_test: bool,
) -> Summary:
    where = str(checkpoint.folder / "config.json")
    mapping: ModelMapping | EncoderMapping
    if is_encoder(checkpoint.config):
        mapping = EncoderMapping(checkpoint.config, where)
    else:
        mapping = ModelMapping(checkpoint.config, where)
    planned, fallbacks = choice.plan(mapping.tensors(checkpoint.entries), checkpoint)
    tokenizer, notes = tokenizer_fields(
        checkpoint.folder,
        checkpoint.config,
        mapping.shape.vocab,
        by_merges=mapping.by_merges,
        self_test=self_test,
    )
    fields = [
        Field("general.architecture", "str", mapping.architecture),
        Field("general.type", "str", "model"),
        Field("general.name", "str", name),
        *mapping.fields(),
        Field("general.file_type", "u32", choice.file_type(planned)),
    ]
    if sentences.pooling is not None:
        fields.append(Field(f"{mapping.architecture}.pooling_type", "u32", sentences.pooling))
    if any(item.out.kind.quantized for item in planned):
        fields.append(Field("general.quantization_version", "u32", _QUANTIZATION_VERSION))
    outs = [item.out for item in planned]
    by_name = {item.out.name: item for item in planned}
    pieces = Pieces(checkpoint)
    size = write_gguf(
        target,
        build_header(fields + tokenizer, outs),
        outs,
        lambda tensor: pieces.of(by_name[tensor.name]),
        overwrite=overwrite,
        progress=progress,
    )
    types: dict[str, tuple[int, int]] = {}
    for tensor in outs:
        tensors, count = types.get(tensor.kind.name, (0, 0))
        types[tensor.kind.name] = (tensors + 1, count + tensor.bytes)
    weights = sum(tensor.weights for tensor in outs)
    return Summary(
        target,
        size,
        weights,
        types,
        tuple(fallbacks),
        tuple(sentences.notes + notes),
        tuple(pieces.imports()),
        checkpoint.method,
    )
