"""From a checkpoint folder to a GGUF file: the plan first, then the data, a piece at a time."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from converters import _encode, _hub
from converters._checkpoint import Checkpoint
from converters._encode import TensorType
from converters._encoder_mapping import EncoderMapping, is_encoder
from converters._family import Rule
from converters._gguf_writer import Field, build_header, write_gguf
from converters._lora import Adapter
from converters._mapping import Mapped, ModelMapping, pair_rows
from converters._merge import MergedCheckpoint
from converters._sentence_transformers import Sentences, read_sentences
from converters._source import Array, Floats
from converters._summary import Summary
from converters._tokenizer_fields import tokenizer_fields
from converters._types import Choice, Planned
from pyengine._errors import ConversionError, ModelFileError

# float32 bytes of one piece. A piece lives in up to four forms at once (as read, as float32,
# re-ordered, packed), so peak memory is a few times this whatever the size of the model.
_PIECE_BYTES = 8 << 20
_QUANTIZATION_VERSION = 2


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str = "q4_0",
    pure: bool = False,
    name: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    overwrite: bool = False,
    self_test: bool = True,
    tensor_types: Mapping[str, str] | None = None,
    lora: str | os.PathLike[str] | None = None,
) -> Summary:
    """Converts a Hugging Face checkpoint folder into one GGUF file.

    Norms, biases and rotation factors stay F32. With a type of fewer bits the token embedding and
    the output head are kept at Q8_0. Rows that a type's blocks do not divide get one of smaller
    blocks, as the summary tells. The file appears under its name only when it is complete.

    Args:
        source: A folder with config.json, weights and a tokenizer; or ``hf:org/name``, perhaps
            with ``@revision``, which is fetched from the Hugging Face hub.
        out: The file to write.
        dtype: The type of matrices: "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0",
            "q4_k", "q4_1", "q4_0", "iq4_xs", "iq4_nl", "mxfp4", "q3_k" or "q2_k".
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
    choice = Choice(dtype, pure, tensor_types or {})
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
    planned, fallbacks = choice.plan(mapping.tensors(checkpoint.entries))
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
        Field("general.file_type", "u32", choice.kind.file_type),
    ]
    if sentences.pooling is not None:
        fields.append(Field(f"{mapping.architecture}.pooling_type", "u32", sentences.pooling))
    if any(item.out.kind.quantized for item in planned):
        fields.append(Field("general.quantization_version", "u32", _QUANTIZATION_VERSION))
    outs = [item.out for item in planned]
    by_name = {item.out.name: item for item in planned}
    size = write_gguf(
        target,
        build_header(fields + tokenizer, outs),
        outs,
        lambda tensor: _pieces(checkpoint, by_name[tensor.name]),
        overwrite=overwrite,
        progress=progress,
    )
    types: dict[str, tuple[int, int]] = {}
    for tensor in outs:
        tensors, count = types.get(tensor.kind.name, (0, 0))
        types[tensor.kind.name] = (tensors + 1, count + tensor.bytes)
    weights = sum(tensor.weights for tensor in outs)
    return Summary(target, size, weights, types, tuple(fallbacks), tuple(sentences.notes + notes))


def _pieces(checkpoint: Checkpoint, planned: Planned) -> Iterator[Array]:
    """The data of one tensor, a run of rows at a time."""
    mapped, kind = planned.mapped, planned.out.kind
    if mapped.data is not None:
        yield _encode.encode(mapped.data, kind, mapped.target)
    elif mapped.rule is not None and mapped.rule.part:
        yield from _head_pieces(checkpoint, mapped, mapped.rule, kind)
    elif mapped.rule is not None and mapped.rule.experts == "stacked":
        yield from _expert_pieces(checkpoint, mapped, mapped.rule, kind)
    elif mapped.rule is not None:
        for source in mapped.sources:
            yield from _row_pieces(checkpoint, mapped, mapped.rule, kind, source)


def _row_pieces(
    checkpoint: Checkpoint, mapped: Mapped, rule: Rule, kind: TensorType, source: str
) -> Iterator[Array]:
    rows = mapped.shape[1] if rule.experts else mapped.shape[0] // len(mapped.sources)
    step = max(1, _PIECE_BYTES // (4 * math.prod(mapped.shape[2 if rule.experts else 1 :])))
    if mapped.head_rows:
        # Rows change places within their head, so a piece is whole heads.
        step = max(step - step % mapped.head_rows, mapped.head_rows)
    where = f"{source} in {checkpoint.file_of(source)}"
    begin = rule.cut[0] * rows
    # Stored rows of one written row: more than one where they are stored as one long vector.
    one_vector = rule.stored and not mapped.order.rows
    each = checkpoint.entries[source].shape[0] // rows if one_vector else 1
    for first, last in mapped.order.rows or ((begin, begin + rows),):
        for at in range(first, last, step):
            piece = checkpoint.read_rows(source, at * each, min(at + step, last) * each)
            yield _encode.encode(_changed(piece, mapped, rule), kind, where)


def _changed(piece: Floats, mapped: Mapped, rule: Rule) -> Floats:
    """What becomes of whole rows."""
    if mapped.head_rows:
        piece = pair_rows(piece, mapped.head_rows)
    if rule.shift:
        piece += np.float32(rule.shift)
    if rule.negated_exp:
        piece = -np.exp(piece)
    if rule.stored:
        piece = piece.reshape(-1, *mapped.shape[1:])
    if mapped.order.columns:
        piece = np.concatenate([piece[:, a:b] for a, b in mapped.order.columns], axis=1)
    return piece


def _head_pieces(
    checkpoint: Checkpoint, mapped: Mapped, rule: Rule, kind: TensorType
) -> Iterator[Array]:
    """Some of the rows of one head after the other."""
    (source,) = mapped.sources
    where = f"{source} in {checkpoint.file_of(source)}"
    heads, rows = mapped.shape[0], mapped.shape[2 if rule.transposed else 1]
    for head in range(heads):
        begin = head * (mapped.front + rows + mapped.behind) + mapped.front
        piece = checkpoint.read_rows(source, begin, begin + rows)
        piece = np.ascontiguousarray(piece.T) if rule.transposed else piece
        yield _encode.encode(piece, kind, where)


def _expert_pieces(
    checkpoint: Checkpoint, mapped: Mapped, rule: Rule, kind: TensorType
) -> Iterator[Array]:
    """One expert after the other, of which no more than one is in memory."""
    first = mapped.sources[0]
    where = f"{first} in {checkpoint.file_of(first)}"
    for expert in range(mapped.shape[0]):
        if mapped.packed:
            blocks, scales = (
                _cut(checkpoint.read_bytes(name, expert, expert + 1)[0], rule)
                for name in mapped.sources
            )
            yield _encode.pack_mxfp4(blocks, scales)
            continue
        rows = checkpoint.read_rows(first, expert, expert + 1)[0]
        rows = _cut(rows.T if rule.transposed else rows, rule)
        yield _encode.encode(np.ascontiguousarray(rows), kind, where)


def _cut(rows: Array, rule: Rule) -> Array:
    """The part of the rows that the rule takes."""
    part, parts = rule.cut
    if rule.alternates:
        return rows[part::parts]
    size = len(rows) // parts
    return rows[part * size : (part + 1) * size]
