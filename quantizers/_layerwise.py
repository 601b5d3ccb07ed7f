"""GPTQ through the engine: layer by layer, each quantized for the inputs that it will get.

Two engines run the calibration text side by side: the source, and the file as far as it is made.
For inputs X that the quantized prefix gives and X' of the source, and residual streams r and r',
a matrix W is first moved to

    W + (beta W (X' - X)^T X + gamma (r' - r)^T X) (H + damping)^-1,    H = X^T X

so that it undoes half of what was lost before it (the first term is that of arXiv:2504.02692, with
a strength; the second only where a product is added to the residual stream as it is), and then
rounded with error feedback.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyengine import Engine, Session
from pyengine._layers import Tap, run_layers
from quantizers._algebra import Algebra, Rounded
from quantizers._weights import Weights

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.uint32]

# Windows whose inputs are added up together.
_CHUNK = 8
# Windows that the head is rounded for, about.
_HEAD_WINDOWS = 32


@dataclass(frozen=True)
class Settings:
    """How matrices are rounded.

    Attributes:
        beta: Share of what inputs lost that is undone.
        gamma: Share of what the residual stream lost that is undone.
        damping: Put on the diagonal of second moments, as a share of its mean.
        n_sweeps: Times that every weight is moved again.
    """

    beta: float = 0.5
    gamma: float = 0.5
    damping: float = 0.01
    n_sweeps: int = 2


@dataclass(frozen=True)
class Group:
    """Matrices that take the same input.

    Attributes:
        names: Of the tensors.
        repairs: Whether their product is added to the residual stream as it is.
    """

    names: tuple[str, ...]
    repairs: bool


class Stream:
    """One model's residual streams of all windows, layer after layer."""

    def __init__(self, engine: Engine, windows: Ids) -> None:
        self.engine = engine
        self.windows = windows
        self.session: Session = engine.session()
        self.d_model = engine.info.d_model
        self.x = np.empty((*windows.shape, self.d_model), np.float32)
        for i, tokens in enumerate(windows):
            run_layers(self.session, tokens, 0, 0, self.x[i])

    def advance(self, layer: int) -> None:
        """Runs a layer over all windows."""
        for i, tokens in enumerate(self.windows):
            run_layers(self.session, tokens, layer, layer + 1, self.x[i])

    def inputs(self, layer: int, tensor: int, first: int, n: int) -> tuple[Floats, Floats]:
        """What a matrix takes in some windows, and the residual streams then."""
        n_cols = self.engine.file.tensors[tensor].shape[-1]
        n_window = self.windows.shape[1]
        rows = np.empty((n, n_window, n_cols), np.float32)
        residual = np.empty((n, n_window, self.d_model), np.float32)
        for i in range(n):
            x = self.x[first + i].copy()
            tap = Tap(tensor, rows=rows[i], residual=residual[i])
            run_layers(
                self.session, self.windows[first + i], layer, layer + 1, x,
                taps=[tap], ends_with_taps=True,
            )  # fmt: skip
        return rows.reshape(-1, n_cols), residual.reshape(-1, self.d_model)


class Layerwise:
    """Quantizes the matrices that a run multiplies tokens with, layer by layer.

    Args:
        source: The model as it is.
        algebra: What computes.
        types: The type of blocks of each matrix, by name.
        windows: Calibration tokens, ``[n_windows, n_window]``.
        settings: How.
    """

    def __init__(
        self,
        source: Weights,
        algebra: Algebra,
        types: Mapping[str, str],
        windows: Ids,
        settings: Settings,
    ) -> None:
        self.source, self.algebra, self.types = source, algebra, types
        self.windows, self.settings = windows, settings

    def run(
        self,
        engine: Engine,
        working: Path,
        names: set[str],
        put: Callable[[str, Rounded], None],
        encode: Callable[[str], None],
    ) -> None:
        """Makes all tensors.

        Args:
            engine: The source's.
            working: The file that is made; what is put or encoded stands in it at once.
            names: All tensors that are to be quantized.
            put: Takes a matrix that was rounded.
            encode: Quantizes a tensor that cannot be, by itself.
        """
        self._put = put
        head = "output.weight" if "output.weight" in self.source else "token_embd.weight"
        if head in self.types:
            self._head(engine, head)
            names = names - {head}
        for name in sorted(n for n in names if not n.startswith("blk.")):
            encode(name)
        window = self.windows.shape[1]
        with Engine(working, n_ctx=window, n_batch=window, resident="off") as made:
            floats, quantized = Stream(engine, self.windows), Stream(made, self.windows)
            for layer in range(engine.info.n_layers):
                groups = self._groups(floats, layer)
                grouped = {name for group in groups for name in group.names}
                # All that a layer computes with must be there before its later inputs are right.
                for name in sorted(n for n in names - grouped if n.startswith(f"blk.{layer}.")):
                    encode(name)
                for group in groups:
                    self._quantize(group, layer, floats, quantized)
                floats.advance(layer)
                quantized.advance(layer)

    def _head(self, engine: Engine, name: str) -> None:
        """Quantizes the head, for the source's own last hidden states."""
        n_cols = self._n_cols(name)
        moments = np.zeros((n_cols, n_cols), np.float32)
        with engine.session() as session:
            for tokens in self.windows[:: max(1, len(self.windows) // _HEAD_WINDOWS)]:
                x = np.empty((len(tokens), n_cols), np.float32)
                run_layers(session, tokens, 0, engine.info.n_layers + 1, x)
                self.algebra.add_moments(moments, x, x)
        factor, _ = self.algebra.factor(moments, self.settings.damping)
        self._round(name, self.source.floats(name), moments, factor)

    def _n_cols(self, name: str) -> int:
        return self.source.file.tensors[self.source.index[name]].shape[-1]

    def _groups(self, stream: Stream, layer: int) -> list[Group]:
        """The matrices of a layer in the order of use, found by a run of one window."""
        prefix = f"blk.{layer}."
        tensors = self.source.file.tensors
        names = [n for n in self.types if n.startswith(prefix)
                 and len(tensors[self.source.index[n]].shape) == 2]  # fmt: skip
        n_window = self.windows.shape[1]
        taps = [
            Tap(
                self.source.index[n],
                rows=np.empty((n_window, tensors[self.source.index[n]].shape[-1]), np.float32),
                residual=np.empty((n_window, stream.d_model), np.float32),
            )
            for n in names
        ]
        x = stream.x[0].copy()
        run_layers(stream.session, self.windows[0], layer, layer + 1, x, taps=taps)
        seen = sorted((t for t in zip(names, taps, strict=True) if t[1].order), key=_order)
        groups: list[Group] = []
        at = 0
        while at < len(seen):
            rows = seen[at][1].rows
            end = at + 1
            while end < len(seen) and np.array_equal(seen[end][1].rows, rows):  # type: ignore[arg-type]
                end += 1
            after = seen[end][1].residual if end < len(seen) else x
            groups.append(Group(tuple(n for n, _ in seen[at:end]),
                                end == at + 1 and self._repairs(*seen[at], after)))  # fmt: skip
            at = end
        return groups

    def _repairs(self, name: str, tap: Tap, after: Floats | None) -> bool:
        """Whether the residual stream grows by just this product."""
        shape = self.source.file.tensors[self.source.index[name]].shape
        assert tap.rows is not None and tap.residual is not None and after is not None
        if shape[0] != after.shape[1]:
            return False
        grown = after - tap.residual
        product = self.algebra.product(tap.rows, self.source.floats(name))
        return bool(np.abs(grown - product).max() <= 1e-2 * np.abs(grown).max())

    def _quantize(self, group: Group, layer: int, floats: Stream, quantized: Stream) -> None:
        tensor = self.source.index[group.names[0]]
        n_cols = self._n_cols(group.names[0])
        moments = np.zeros((n_cols, n_cols), np.float32)
        lost = np.zeros((n_cols, n_cols), np.float32)
        strayed = np.zeros((floats.d_model, n_cols), np.float32) if group.repairs else None
        for first in range(0, len(self.windows), _CHUNK):
            n = min(_CHUNK, len(self.windows) - first)
            x, r = quantized.inputs(layer, tensor, first, n)
            wanted, wanted_r = floats.inputs(layer, tensor, first, n)
            self.algebra.add_moments(moments, x, x)
            wanted -= x
            self.algebra.add_moments(lost, x, wanted)
            if strayed is not None:
                wanted_r -= r
                self.algebra.add_moments(strayed, wanted_r, x)
        factor, _ = self.algebra.factor(moments, self.settings.damping)
        for name in group.names:
            weights = self.source.floats(name)
            moved = np.float32(self.settings.beta) * self.algebra.product(weights, lost)
            if strayed is not None:
                moved += np.float32(self.settings.gamma) * strayed
            self._round(name, weights + self.algebra.solve(moved, factor), moments, factor)

    def _round(self, name: str, weights: Floats, moments: Floats, factor: Floats) -> None:
        n_sweeps = self.settings.n_sweeps
        self._put(name, self.algebra.round(weights, self.types[name], moments, factor, n_sweeps))


def _order(item: tuple[str, Tap]) -> int:
    return item[1].order
