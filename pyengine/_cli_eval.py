"""The command `eval`: how good a model is."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from pyengine._cli_options import (
    INTERRUPTED,
    StatusLine,
    engine_options,
    open_engine,
    read_text,
    stacked,
    write_whole,
)
from pyengine._engine import Engine
from pyengine._errors import ArgumentError, CancelledError
from pyengine._evaluation import Evaluation, evaluate
from pyengine._report import document, picture, report
from pyengine._session import CancelFlag
from pyengine._tasks import Task

_TASKS = ("hellaswag", "arc", "mmlu", "gsm8k")
_BAR = 24
# Progress is written this often at most, in seconds.
_EVERY = 0.1

_path = click.Path(path_type=Path)


def _file_option(name: str, help_text: str) -> Any:
    return click.option(name, type=_path, metavar="FILE", help=help_text)


@click.command("eval", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", required=False, type=_path)
@stacked(
    _file_option("--perplexity", "Score this text, as llama.cpp's perplexity tool does."),
    click.option("--text", help="Score this text, given here."),
    click.option("--window", default=512, show_default=True, help="Tokens per window of it."),
    _file_option("--kl-against", "Divergence on the text from this model, a GGUF file."),
    _file_option("--hellaswag", "JSON lines."),
    _file_option("--arc", "JSON lines."),
    _file_option("--mmlu", "JSON lines, CSV, or a folder of CSV files."),
    _file_option("--mmlu-shots", "Solved examples for MMLU, in the same form."),
    _file_option("--gsm8k", "JSON lines."),
    _file_option("--gsm8k-shots", "Solved examples for GSM8K, in the same form."),
    click.option("--shots", default=5, show_default=True, help="Examples before a question."),
    click.option("--limit", type=int, help="Questions of each task (MMLU: subject) at most."),
    _file_option("--compare", "Measure this model too, and the difference."),
    engine_options,
    click.option(
        "--json", "json_path", is_flag=False, flag_value="-",
        help="Write JSON there; alone: to stdout.",
    ),
    click.option("--picture", "svg_path", type=_path, help="Draw the divergence by position."),
    click.option("-q", "--quiet", is_flag=True, help="No progress."),
)  # fmt: skip
def eval_command(
    model: Path | None,
    perplexity: Path | None,
    text: str | None,
    window: int,
    kl_against: Path | None,
    compare: Path | None,
    json_path: str | None,
    svg_path: Path | None,
    quiet: bool,
    **options: Any,
) -> int:
    """Measures how good MODEL is; without one, the bundled story model.

    Numbers come with standard errors, differences with 95 % confidence intervals. Ctrl-C ends
    it with what was measured so far. docs/EVALUATION.md says what each number means.
    """
    if perplexity is not None and text is not None:
        raise click.UsageError("expected one of --perplexity and --text, found both")
    if perplexity is not None:
        text = read_text(perplexity)
    if svg_path is not None and kl_against is None:
        raise click.UsageError("--picture: expected --kl-against too, found none")
    tasks = _tasks(options)
    if text is None and not tasks:
        raise click.UsageError("expected --perplexity, --text or a task, found nothing to measure")
    if text is None and kl_against is not None:
        raise click.UsageError("--kl-against: expected --perplexity or --text too, found neither")
    progress = _Progress(enabled=not quiet)
    with ExitStack() as stack:
        engine = stack.enter_context(open_engine(model, dict(options)))
        others = {
            name: stack.enter_context(open_engine(path, dict(options)))
            for name, path in (("reference", kl_against), ("compare", compare))
            if path is not None
        }
        found = _measure(engine, progress, text=text, window=window, tasks=tasks, **others)
    shown = json.dumps(document(found), indent=2)
    click.echo(shown if json_path == "-" else report(found))
    if json_path not in (None, "-"):
        write_whole(Path(str(json_path)), shown + "\n")
    if svg_path is not None:
        write_whole(svg_path, picture(found))
    return 0 if found.complete else INTERRUPTED


def _tasks(options: dict[str, Any]) -> list[Task]:
    """Reads the tasks' files, and takes out of options what they say of them."""
    n_shots, limit = options.pop("shots"), options.pop("limit")
    files = {name: options.pop(name) for name in _TASKS}
    shots = {name: options.pop(f"{name}_shots", None) for name in _TASKS}
    for name, path in shots.items():
        if path is not None and files[name] is None:
            raise ArgumentError(f"--{name}-shots: expected --{name} too, found none")
    return [
        Task.read(name, path, shots=shots[name], n_shots=n_shots, limit=limit)
        for name, path in files.items()
        if path is not None
    ]


def _measure(engine: Engine, progress: _Progress, **arguments: Any) -> Evaluation:
    """Runs the evaluation in a thread of its own, so that Ctrl-C stops it within a pass."""
    cancel = CancelFlag()
    with ThreadPoolExecutor(1) as worker:
        running = worker.submit(evaluate, engine, progress=progress, cancel=cancel, **arguments)
        while True:
            # Not Thread.join: interrupted, Python 3.11's takes the thread for ended.
            try:
                return running.result()
            except KeyboardInterrupt:
                cancel.cancel()
            except CancelledError:  # before there was anything to show
                raise KeyboardInterrupt from None
            finally:
                progress.clear()


class _Progress(StatusLine):
    """A bar, the rate and the time left."""

    def __init__(self, *, enabled: bool) -> None:
        super().__init__(enabled=enabled)
        self._what = ""
        self._first = self._last = 0
        self._started = self._written = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what or done <= self._last:
            # Work before the first call, such as reading, is not the rate's.
            self._what, self._started, self._first = what, now, done
        self._last = done
        if now - self._written < _EVERY and done != total:
            return
        self._written = now
        seconds = now - self._started
        line = f"{what:<10} [{'#' * (_BAR * done // total):<{_BAR}}] {done}/{total}"
        if done > self._first and seconds > 0:
            rate = (done - self._first) / seconds
            unit = "tok" if what == "text" else "questions"
            left = (total - done) / rate
            line += f", {rate:.1f} {unit}/s, {_clock(left)} left"
        self.show(line)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
