"""From logits to a token: options, the core's sampler, log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pyengine._arguments import instance, integer, real
from pyengine._errors import ArgumentError
from pyengine._native import Handle, call, ffi, lib

MAX_SEED = 2**64 - 1
_MAX_COUNT = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Applied in this order: bias, penalties, top_k,
    top_p, min_p, temperature; the defaults are those that most local engines share.

    Attributes:
        temperature: 0 always takes the most likely token.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of tokens with this much probability; 1 keeps all.
        min_p: Keep tokens at least this probable relative to the first; 0 keeps all.
        repeat_penalty: Above 1 discourages tokens seen in the window; 1 is off.
        presence_penalty: Subtracted from the logit of every token seen in the window.
        frequency_penalty: Subtracted once per occurrence in the window.
        penalty_window: How many of the last tokens, prompt included, count as seen.
        logit_bias: Added to the logits of these tokens; ``-inf`` bans one.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    logit_bias: Mapping[int, float] = field(default_factory=dict)


class Sampler(Handle):
    """Picks tokens by the core's sampler; the same seed picks the same tokens.

    Raises:
        ArgumentError: An option outside its range, named.
    """

    def __init__(self, options: Sampling, seed: int) -> None:
        params = ffi.new("pe_sampler_params *")
        params.struct_bytes = ffi.sizeof("pe_sampler_params")
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "repeat_penalty",
            "presence_penalty",
            "frequency_penalty",
        ):
            setattr(params, name, real(name, getattr(options, name)))
        params.top_k = integer("top_k", options.top_k, 0, _MAX_COUNT)
        params.penalty_window = integer("penalty_window", options.penalty_window, 0, _MAX_COUNT)
        params.seed = integer("seed", seed, 0, MAX_SEED)
        instance("logit_bias", options.logit_bias, Mapping, "a mapping of token ids to numbers")
        bias = options.logit_bias
        tokens = ffi.new("uint32_t[]", [integer("logit_bias", t, 0, _MAX_COUNT) for t in bias])
        values = ffi.new("float[]", [real("logit_bias", b) for b in bias.values()])
        out = ffi.new("pe_sampler **")
        call(lib.pe_sampler_new, out, params, tokens, values, len(bias))
        self._handle = ffi.gc(out[0], lib.pe_sampler_free)

    def accept(self, token: int) -> None:
        """Adds a token to the history that the penalties look at."""
        lib.pe_sampler_accept(self._handle, integer("token", token, 0, _MAX_COUNT))

    def pick(self, logits: npt.NDArray[np.float32]) -> int:
        """Picks a token from one row of logits; does not accept it.

        Raises:
            NumericError: A logit is NaN or infinite.
        """
        if np.asarray(logits).dtype.kind not in "fiu":
            raise ArgumentError(f"logits: expected numbers, found {np.asarray(logits).dtype}")
        row = np.ascontiguousarray(logits, np.float32)
        if row.ndim != 1:
            raise ArgumentError(f"logits: expected one row, found shape {row.shape}")
        token = ffi.new("uint32_t *")
        call(
            lib.pe_sampler_pick,
            self._handle,
            token,
            ffi.cast("const float *", row.ctypes.data),
            row.size,
        )
        return int(token[0])

    @property
    def state(self) -> int:
        """The whole random state; setting it replays what followed."""
        return int(lib.pe_sampler_state(self._handle))

    @state.setter
    def state(self, value: int) -> None:
        lib.pe_sampler_set_state(self._handle, integer("state", value, 0, MAX_SEED))


def top_logprobs(logits: npt.NDArray[np.float32], k: int) -> list[tuple[int, float]]:
    """The k most likely tokens of one row with their log-probabilities."""
    tokens = ffi.new("uint32_t[]", k)
    values = ffi.new("float[]", k)
    call(
        lib.pe_top_logprobs,
        tokens,
        values,
        k,
        ffi.cast("const float *", logits.ctypes.data),
        logits.size,
    )
    return list(zip(tokens, values, strict=True))
