"""An independent Llama forward pass in float64, to compare the engine with.

It reads GGUF files through gguf-py and shares no code with pyengine. With ``engine_rounding``
it rounds where the engine says that it does: 8-bit activations in front of quantized matrices,
and 16-bit keys and values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType

Array = np.ndarray[Any, Any]
_FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)


class NumpyLlama:
    """The model in a file."""

    def __init__(self, path: Path, *, engine_rounding: bool = False, kv_f16: bool = False) -> None:
        reader = gguf.GGUFReader(path)
        self._meta = {key: item.contents() for key, item in reader.fields.items()}
        self._weights: dict[str, Array] = {}
        self._rounds: set[str] = set()
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            self._weights[tensor.name] = values.astype(np.float64)
            if engine_rounding and tensor.tensor_type not in _FLOATS:
                self._rounds.add(tensor.name)
        self._kv_f16 = kv_f16

    def logits(self, tokens: list[int]) -> Array:
        """Logits at every position, ``[len(tokens), n_vocab]``."""
        heads, kv_heads = self._get("attention.head_count"), self._get("attention.head_count_kv")
        n, width = len(tokens), self._get("attention.key_length")
        x = self._weights["token_embd.weight"][tokens]
        for layer in range(self._get("block_count")):
            at = f"blk.{layer}."
            h = self._norm(x, at + "attn_norm")
            q, k, v = (
                self._linear(h, f"{at}attn_{name}").reshape(n, count, width).swapaxes(0, 1)
                for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
            )
            q, k = self._rotate(q), self._rotate(k)
            if self._kv_f16:
                k, v = k.astype(np.float16).astype(np.float64), v.astype(np.float16)
            k, v = (np.repeat(part, heads // kv_heads, axis=0) for part in (k, v))
            scores = q @ k.swapaxes(1, 2) / np.sqrt(width)
            scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
            out = (_softmax(scores) @ v).swapaxes(0, 1).reshape(n, heads * width)
            x = x + self._linear(out, at + "attn_output")
            h = self._norm(x, at + "ffn_norm")
            gate = self._linear(h, at + "ffn_gate")
            h = gate / (1 + np.exp(-gate)) * self._linear(h, at + "ffn_up")
            x = x + self._linear(h, at + "ffn_down")
        head = "output" if "output.weight" in self._weights else "token_embd"
        return self._linear(self._norm(x, "output_norm"), head)

    def _get(self, key: str) -> Any:
        return self._meta["llama." + key]

    def _norm(self, x: Array, name: str) -> Array:
        epsilon = self._get("attention.layer_norm_rms_epsilon")
        rms = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon)
        return x / rms * self._weights[name + ".weight"]

    def _linear(self, x: Array, name: str) -> Array:
        if name + ".weight" in self._rounds:
            x = _round_to_8_bits(x)
        return x @ self._weights[name + ".weight"].T + self._weights.get(name + ".bias", 0.0)

    def _rotate(self, x: Array) -> Array:
        """Rotates neighbouring pairs of each head, ``x`` being ``[heads, n, width]``."""
        pairs = self._get("rope.dimension_count") // 2
        freqs = self._get("rope.freq_base") ** (-np.arange(pairs) / pairs)
        freqs = freqs / self._meta.get("llama.rope.scaling.factor", 1.0)
        freqs = freqs / self._weights.get("rope_freqs.weight", 1.0)
        turns = np.exp(1j * np.arange(x.shape[1])[:, None] * freqs)
        rotated = (x[..., 0::2] + 1j * x[..., 1::2]) * turns
        return np.stack([rotated.real, rotated.imag], axis=-1).reshape(x.shape)


def _softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _round_to_8_bits(x: Array) -> Array:
    """Each run of 32 as its largest magnitude / 127 times an integer."""
    blocks = x.reshape(-1, 32)
    step = np.abs(blocks).max(axis=1, keepdims=True) / 127
    rounded = np.rint(np.divide(blocks, step, where=step > 0, out=np.zeros_like(blocks))) * step
    return rounded.reshape(x.shape)
