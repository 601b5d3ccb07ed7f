"""An evaluation for reading, for programs and as a picture."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

import pyengine
from pyengine._divergence import Divergence
from pyengine._errors import ArgumentError
from pyengine._evaluation import Evaluation, ModelScores
from pyengine._statistics import Difference, Floats, Mean, Quantile, mean

# Points of a curve at most; positions are put together until so few are left.
_POINTS = 64
_COLORS = ("#3b7dd8", "#d8763b")


def report(evaluation: Evaluation) -> str:
    """The figures for reading; standard errors stand behind ±, 95 % intervals in brackets."""
    lines: list[str] = []
    if evaluation.reference is not None:
        value = evaluation.reference
        lines += [f"reference: perplexity {_mean(Mean(value.value, value.error), 4)}", ""]
    for model in evaluation.models:
        lines += [f"{model.path}", *(f"  {line}" for line in _model_lines(model)), ""]
    if evaluation.differences:
        lines.append("second less first, 95 % confidence intervals")
        lines += [f"  {_difference_line(one)}" for one in evaluation.differences]
        lines.append("")
    if not evaluation.complete:
        lines.append("interrupted: the figures are of what was measured until then")
    return "\n".join(lines).rstrip()


def _model_lines(model: ModelScores) -> list[str]:
    lines = []
    if model.perplexity is not None:
        value = model.perplexity
        lines.append(
            f"{'perplexity':<24}{_mean(Mean(value.value, value.error), 4)}"
            f"  (± {value.window_error:.4f} by windows; {value.n_tokens} tokens scored in "
            f"{value.n_windows} windows)"
        )
    if model.divergence is not None:
        apart = model.divergence
        lines += [
            f"{'ln perplexity ratio':<24}{_mean(apart.log_ratio, 5)}",
            f"{'KL divergence, mean':<24}{_mean(apart.mean, 6)}"
            f"  (± {apart.window_error:.6f} by windows)",
            f"{'  median':<24}{_quantile(apart.median)}",
            f"{'  99 %':<24}{_quantile(apart.p99)}",
            f"{'  largest':<24}{apart.maximum:.6f}",
            f"{'same most likely token':<24}{_share(apart.same_top)}",
        ]
    for task in model.tasks:
        shots = f", {task.n_shots} shots" if task.n_shots else ""
        for i, (name, accuracy) in enumerate(task.accuracies.items()):
            about = f"  ({task.n_questions} questions{shots})" if i == 0 else ""
            lines.append(f"{f'{task.name} {name}':<24}{_share(accuracy)}{about}")
    return lines


def _mean(value: Mean, digits: int) -> str:
    return f"{value.value:.{digits}f} ± {value.error:.{digits}f}"


def _share(value: Mean) -> str:
    return f"{100 * value.value:.2f} ± {100 * value.error:.2f} %"


def _quantile(value: Quantile) -> str:
    return f"{value.value:.6f} [{value.low:.6f}, {value.high:.6f}]"


def _difference_line(one: Difference) -> str:
    better = {None: "no difference shown", 0: "the first is better", 1: "the second is better"}
    return f"{one.name:<24}{one.value:+.6f} [{one.low:+.6f}, {one.high:+.6f}]  {better[one.better]}"


def document(evaluation: Evaluation) -> dict[str, Any]:
    """The figures for programs, as JSON has them; what is infinite or undefined is null."""
    found: dict[str, Any] = _finite(
        {
            "pyengine": pyengine.__version__,
            "complete": evaluation.complete,
            "window": evaluation.window,
            "reference": _shown(evaluation.reference),
            "models": [
                {
                    "path": model.path,
                    "perplexity": _shown(model.perplexity),
                    "divergence": _shown(model.divergence),
                    "tasks": [_shown(task) for task in model.tasks],
                }
                for model in evaluation.models
            ],
            "differences": [
                {**asdict(one), "better": one.better} for one in evaluation.differences
            ],
        }
    )
    return found


def _shown(value: Any) -> dict[str, Any] | None:
    """The fields that are for showing, of a result or of what it holds."""
    if value is None:
        return None
    found = {f.name: getattr(value, f.name) for f in fields(value) if f.repr}
    if isinstance(value, Divergence):
        found["by_position"] = value.values.mean(axis=0).tolist()
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mean | Quantile):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


# ---- the picture ----

_LEFT, _TOP, _WIDTH, _HEIGHT = 70, 40, 560, 260


def picture(evaluation: Evaluation) -> str:
    """An SVG of the divergence by the token's position in its window, with error bands.

    Raises:
        ArgumentError: No divergence was measured.
    """
    measured = [
        (Path(model.path).name, model.divergence.values)
        for model in evaluation.models
        if model.divergence is not None
    ]
    if not measured:
        raise ArgumentError("picture: expected a divergence from a reference, found none measured")
    n_scored = measured[0][1].shape[1]
    curves = [_curve(values) for _, values in measured]
    highest = max(float((values + errors).max()) for _, values, errors in curves) or 1.0
    # Of a window of n tokens the first scored one, counted from 0, is n / 2 + 1.
    first = evaluation.window // 2 + 1
    out = _axes(first, first + n_scored - 1, highest)
    for i, ((name, _), color) in enumerate(zip(measured, _COLORS, strict=False)):
        positions, values, errors = curves[i]
        x = _LEFT + _WIDTH * positions / n_scored
        upper, middle, lower = (
            [f"{a:.1f},{b:.1f}" for a, b in zip(x, _y(v, highest), strict=True)]
            for v in (values + errors, values, values - errors)
        )
        band = " ".join(upper + lower[::-1])
        out += [
            f'<polygon points="{band}" fill="{color}" opacity="0.2"/>',
            f'<polyline points="{" ".join(middle)}" fill="none" stroke="{color}" '
            'stroke-width="2"/>',
            f'<text x="{_LEFT + 8 + 280 * i}" y="{_TOP + _HEIGHT + 44}" fill="{color}">'
            f"{_escape(name)}</text>",
        ]
    return "\n".join([*out, "</svg>\n"])


def _axes(first: int, last: int, highest: float) -> list[str]:
    """The picture's beginning: title, lines of equal divergence, positions."""
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 30}" '
        f'height="{_TOP + _HEIGHT + 60}" font-family="sans-serif" font-size="13" '
        'fill="#808080">',
        '<text x="8" y="18">KL divergence from the reference by position in the window, nats '
        "(mean, 95 % band)</text>",
    ]
    for i in range(5):
        value, x = highest * i / 4, _LEFT + _WIDTH * i / 4
        y = float(_y(np.array(value), highest))
        position = first + round((last - first) * i / 4)
        out += [
            f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}" '
            'stroke="#80808040"/>',
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>',
            f'<text x="{x:.1f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{position}</text>',
        ]
    return out


def _y(values: Floats, highest: float) -> Floats:
    return _TOP + _HEIGHT * (1 - np.clip(values / highest, 0.0, 1.0))


def _curve(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Middle positions, means and half widths of 95 % intervals of runs of positions."""
    n = values.shape[1]
    runs = np.array_split(np.arange(n), min(n, _POINTS))
    means = [mean(values[:, run]) for run in runs]
    return (
        np.array([run.mean() + 0.5 for run in runs]),
        np.array([one.value for one in means]),
        np.array([1.96 * one.error if math.isfinite(one.error) else 0.0 for one in means]),
    )


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
