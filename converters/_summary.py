"""What a conversion did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fallback:
    """A tensor that is not of the type that was asked for.

    Attributes:
        name: GGUF's name of the tensor.
        wanted: The type it would have had.
        written: The type it has.
        reason: Why.
    """

    name: str
    wanted: str
    written: str
    reason: str


@dataclass(frozen=True)
class Summary:
    """The outcome of `convert`.

    Attributes:
        path: The file.
        size: Its bytes.
        weights: How many numbers the tensors hold.
        types: Type name to (tensors, bytes of data).
        fallbacks: Tensors that could not have the type that was asked for.
        notes: What else the user should know.
    """

    path: Path
    size: int
    weights: int
    types: Mapping[str, tuple[int, int]]
    fallbacks: tuple[Fallback, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per weight."""
        return 8 * sum(count for _, count in self.types.values()) / max(self.weights, 1)

    def table(self) -> str:
        """The summary as lines of text for a terminal."""
        lines = [f"{'type':<6} {'tensors':>8} {'bytes':>16}"]
        lines += [
            f"{name:<6} {tensors:>8} {count:>16,}" for name, (tensors, count) in self.types.items()
        ]
        lines.append(
            f"{self.path}: {self.size:,} bytes, {self.weights:,} weights, "
            f"{self.bits_per_weight:.2f} bits per weight"
        )
        lines += [
            f"fallback: {f.name}: {f.written} instead of {f.wanted}: {f.reason}"
            for f in self.fallbacks
        ]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
