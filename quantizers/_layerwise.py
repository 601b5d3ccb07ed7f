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

import numpy as np
import numpy.typing as npt

from pyengine import Engine, Session
from pyengine._layers import Tap, run_layers
from quantizers._algebra import Algebra
from quantizers._weights import Weights
from quantizers._working_file import WorkingFile

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.uint32]

# Windows whose inputs are added up together.
_CHUNK = 8


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
    """Quantizes all matrices of the layers that a run multiplies tokens with.

    Args:
        source: The model as it is.
        working: The file that is made.
        types: The type of each matrix, by name.
        windows: Calibration tokens, ``[n_windows, n_window]``.
        settings: How.
    """

    def __init__(
        self,
        source: Weights,
        working: WorkingFile,
        types: Mapping[str, str],
        windows: Ids,
        settings: Settings,
    ) -> None:
        self.source, self.working, self.types = source, working, types
        self.windows, self.settings = windows, settings
        self.algebra = Algebra()
        self.errors: dict[str, float] = {}

    def head(self, engine: Engine, name: str) -> None:
        """Quantizes the head, for the source's own last hidden states."""
        n_layers = engine.info.n_layers
        n_cols = self.source.file.tensors[self.source.index[name]].shape[-1]
        moments = np.zeros((n_cols, n_cols), np.float32)
        with engine.session() as session:
            for tokens in self.windows[:: max(1, len(self.windows) // 32)]:
                x = np.empty((len(tokens), n_cols), np.float32)
                run_layers(session, tokens, 0, n_layers + 1, x)
                self.algebra.add_moments(moments, x, x)
        self._round(name, moments, None)

    def layers(self, engine: Engine, progress: Callable[[int, int, str], None] | None) -> set[str]:
        """Quantizes layer after layer; gives the matrices that were."""
        done: set[str] = set()
        window = self.windows.shape[1]
        with Engine(self.working.path, n_ctx=window, n_batch=window, resident="off") as made:
            floats, quantized = Stream(engine, self.windows), Stream(made, self.windows)
            n_layers = engine.info.n_layers
            for layer in range(n_layers):
                for group in self._groups(floats, layer):
                    if progress is not None:
                        progress(layer, n_layers, group.names[0])
                    self._quantize(group, layer, floats, quantized)
                    done.update(group.names)
                floats.advance(layer)
                quantized.advance(layer)
        return done

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
        n_cols = self.source.file.tensors[tensor].shape[-1]
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
        for name in group.names:
            self._round(name, moments, lost, strayed)

    def _round(
        self,
        name: str,
        moments: Floats,
        lost: Floats | None,
        strayed: Floats | None = None,
    ) -> None:
        weights = self.source.floats(name)
        factor, _ = self.algebra.factor(moments, self.settings.damping)
        if lost is not None:
            moved = np.float32(self.settings.beta) * self.algebra.product(weights, lost)
            if strayed is not None:
                moved += np.float32(self.settings.gamma) * strayed
            weights = weights + self.algebra.solve(moved, factor)
        rounded = self.algebra.round(
            weights, self.types[name], moments, factor, self.settings.n_sweeps
        )
        self.working.write(name, rounded.blocks)
        self.errors[name] = (rounded.error / rounded.norm) ** 0.5 if rounded.norm > 0 else 0.0


def _order(item: tuple[str, Tap]) -> int:
    return item[1].order
