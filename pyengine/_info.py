"""What an engine says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyengine._native import ffi, lib

ISAS = {
    "scalar": lib.PE_ISA_SCALAR,
    "avx2": lib.PE_ISA_AVX2,
    "avx_vnni": lib.PE_ISA_AVX_VNNI,
    "avx512": lib.PE_ISA_AVX512,
    "neon": lib.PE_ISA_NEON,
    "dotprod": lib.PE_ISA_DOTPROD,
    "i8mm": lib.PE_ISA_I8MM,
}
RESIDENT_MODES = {
    "auto": lib.PE_RESIDENT_AUTO,
    "off": lib.PE_RESIDENT_OFF,
    "on": lib.PE_RESIDENT_ON,
}
KV_TYPES = {
    "auto": lib.PE_KV_AUTO,
    "f32": lib.PE_KV_F32,
    "f16": lib.PE_KV_F16,
    "q8_0": lib.PE_KV_Q8_0,
    "q4_0": lib.PE_KV_Q4_0,
}
POOLINGS = {
    "none": lib.PE_POOLING_NONE,
    "mean": lib.PE_POOLING_MEAN,
    "cls": lib.PE_POOLING_CLS,
    "last": lib.PE_POOLING_LAST,
}
_KV_NAMES = {number: name for name, number in KV_TYPES.items()}
_POOLING_NAMES = {number: name for name, number in POOLINGS.items()}


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is and what it holds; sizes in bytes.

    Attributes:
        architecture: GGUF name, such as ``"llama"``.
        isa: Instruction set of the kernels that run.
        n_ctx: Positions a session may hold.
        n_ctx_train: Positions the model was trained for.
        kv_type: How keys and values are stored: ``"f32"``, ``"f16"``, ``"q8_0"`` or ``"q4_0"``.
        weight_bytes: All weights; they stay in the file's mapping.
        decode_bytes: Weights read to decode one token.
        scratch_bytes: Working memory taken when the engine opened.
        kv_page_bytes: Taken per 32 positions of a session.
        kv_bytes: Held in pages now, by all sessions.
        kv_bytes_peak: The most that ``kv_bytes`` has been.
        resident_bytes: Weights kept in memory, interleaved, so far.
        resident_bytes_goal: And when all that gain by it are; 0 when none are to be.
        resident_why: Why they are, or are not, in words.
        state_bytes: What recurrent layers remember of a session's past, checkpoints come to it;
            0 where a model has no such layers.
        kind: ``"decoder"``, or ``"encoder"``, which embeds texts and never generates.
        pooling: How the file says a text's vector is made: ``"mean"``, ``"cls"``, ``"last"``,
            ``"none"``; None where it does not say.
    """

    architecture: str
    isa: str
    n_vocab: int
    n_ctx: int
    n_ctx_train: int
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    n_threads: int
    n_batch: int
    kv_type: str
    weight_bytes: int
    decode_bytes: int
    scratch_bytes: int
    kv_page_bytes: int
    kv_bytes: int
    kv_bytes_peak: int
    resident_bytes: int
    resident_bytes_goal: int
    resident_why: str
    state_bytes: int
    kind: str
    pooling: str | None


def engine_info(raw: Any) -> EngineInfo:
    """The core's record as Python has it."""
    fields: dict[str, Any] = {name: getattr(raw, name, None) for name in EngineInfo.__slots__}
    for name in ("architecture", "isa", "resident_why"):
        fields[name] = ffi.string(getattr(raw, name)).decode()
    fields["kv_type"] = _KV_NAMES[raw.kv_type]
    fields["kind"] = "encoder" if raw.is_encoder else "decoder"
    fields["pooling"] = _POOLING_NAMES.get(raw.pooling)
    return EngineInfo(**fields)
