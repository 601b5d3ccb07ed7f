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
class Import:
    """A tensor that the checkpoint has quantized.

    Attributes:
        name: GGUF's name of the tensor.
        stored: What it was, such as "4-bit GPTQ".
        written: The type it has.
        kept: Whether its integers are the checkpoint's, so that only scales were rounded.
        weights: How many there are.
        differing: How many of them are another number than the checkpoint's, which is
            scale * (code - zero) in float32.
        max_error: The largest difference over the largest weight.
        rms_error: The root of the differences' squares over that of the weights'.
    """

    name: str
    stored: str
    written: str
    kept: bool
    weights: int
    differing: int
    max_error: float
    rms_error: float

    @property
    def exact(self) -> bool:
        """Whether every weight is the checkpoint's."""
        return not self.differing

    def line(self) -> str:
        """What the summary says of one that is not exact."""
        what = "scales rounded" if self.kept else "weights rounded"
        return (
            f"not exact: {self.name}: {self.written} of {self.stored}, {what}: "
            f"{self.differing:,} of {self.weights:,} weights differ, "
            f"by {self.max_error:.1e} of the largest at most, {self.rms_error:.1e} rms"
        )


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
        imports: The tensors that the checkpoint has quantized, in the file's order.
        method: What quantized them, as config.json calls it.
    """

    path: Path
    size: int
    weights: int
    types: Mapping[str, tuple[int, int]]
    fallbacks: tuple[Fallback, ...] = ()
    notes: tuple[str, ...] = ()
    imports: tuple[Import, ...] = ()
    method: str = ""

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
        if self.imports:
            exact = sum(item.exact for item in self.imports)
            lines.append(
                f"{self.method}: {exact} of {len(self.imports)} quantized tensors are exact"
            )
        lines += [item.line() for item in self.imports if not item.exact]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
