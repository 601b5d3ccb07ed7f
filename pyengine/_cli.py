"""The command line: run, chat, embed, bench, eval, inspect, convert, quantize.

Errors end in one line on stderr: exit code 2 for wrong usage, 1 for everything else that
went wrong, 130 after Ctrl-C. Text goes to stdout, all else to stderr.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import pyengine
from pyengine._bench import Bench, Plan, Row, header, numbers, peak_bytes, picture, table
from pyengine._cli_chat import ChatLoop
from pyengine._cli_embed import read_texts, run_embed
from pyengine._cli_eval import eval_command
from pyengine._cli_options import (
    INTERRUPTED,
    SlowProgress,
    decode,
    engine_options,
    kernel_options,
    open_engine,
    read_text,
    stacked,
    write_whole,
)
from pyengine._engine import Engine
from pyengine._errors import ArgumentError, PyengineError
from pyengine._generate import Generation, Stream
from pyengine._info import POOLINGS
from pyengine._inspect import inspect_json, inspect_text, printable

_PREFILL_LINE = "prompt {done}/{total} tokens, {rate:.1f} tok/s, {left:.0f} s left"

_CONTEXT = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=_CONTEXT)
@click.version_option(pyengine.__version__, "-V", "--version", prog_name="pyengine")
def _group() -> None:
    """Large language models on the CPU that you already own."""


_sampling_options = stacked(
    click.option(
        "--temp", "--temperature", "temperature", type=float, default=0.8, show_default=True
    ),
    click.option("--top-k", type=int, default=40, show_default=True, help="0: off."),
    click.option("--top-p", type=float, default=0.95, show_default=True, help="1: off."),
    click.option("--min-p", type=float, default=0.05, show_default=True, help="0: off."),
    click.option("--repeat-penalty", type=float, default=1.0, show_default=True, help="1: off."),
    click.option("--presence-penalty", type=float, default=0.0, show_default=True),
    click.option("--frequency-penalty", type=float, default=0.0, show_default=True),
    click.option(
        "--repeat-last-n",
        "penalty_window",
        type=int,
        default=64,
        show_default=True,
        help="Penalty window.",
    ),
    click.option("-s", "--seed", type=int, help="Default: a new one each time, shown at the end."),
    click.option(
        "--stop", "-r", "--reverse-prompt", multiple=True, help="End before this text; repeatable."
    ),
)


def _max_tokens(given: int) -> int | None:
    if given < -1:
        raise ArgumentError(f"--max-tokens: expected -1 or more, found {given}")
    return None if given == -1 else given


# ---- run ----


@_group.command("run", context_settings=_CONTEXT)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("-m", "--model", "model_option", type=click.Path(path_type=Path), hidden=True)
@click.option("-p", "--prompt", help="Text to continue.")
@click.option(
    "-f", "--file", "prompt_file", type=click.Path(path_type=Path), help="Read the prompt from it."
)
@click.option("-e", "--escape", is_flag=True, help=r"Read \n, \t, \\ in the prompt and in --stop.")
@click.option(
    "-n", "--max-tokens", "--predict", "--n-predict", type=int, default=-1,
    help="Tokens to generate at most; -1: until an end token or a full context.",
)  # fmt: skip
@engine_options
@_sampling_options
@click.option("--ignore-eos", is_flag=True, help="Never choose an end token.")
@click.option("--echo/--no-echo", default=None, help="Show the prompt.  [default: on a terminal]")
@click.option("-q", "--quiet", is_flag=True, help="No summary and no progress.")
@click.option("-v", "--verbose", is_flag=True, help="Show what runs: kernels, threads, memory.")
def _run(
    model: Path | None,
    model_option: Path | None,
    prompt: str | None,
    prompt_file: Path | None,
    escape: bool,
    max_tokens: int,
    stop: tuple[str, ...],
    echo: bool | None,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Continues a prompt with MODEL, a GGUF file; without one, the bundled story model.

    The prompt comes from -p, -f or a pipe on standard input.
    """
    text = _prompt(prompt, prompt_file)
    if escape:
        text = _unescape(text)
        stop = tuple(_unescape(item) for item in stop)
    most = _max_tokens(max_tokens)
    with open_engine(model or model_option, options) as engine:
        if verbose:
            click.echo(_describe(engine), err=True)
        progress = SlowProgress(_PREFILL_LINE, enabled=not quiet)
        stream = engine.generate(
            text,
            stream=True,
            max_tokens=most,
            stop=stop,
            progress=progress,
            **options,
        )
        shown = text if (sys.stdout.isatty() if echo is None else echo) else ""
        interrupted = _print_stream(shown, stream, progress)
        if not quiet:
            click.echo(_summary(stream.result), err=True)
    return INTERRUPTED if interrupted else 0


def _print_stream(prompt: str, stream: Stream, progress: SlowProgress) -> bool:
    """Writes the prompt, and pieces as they come; gives whether Ctrl-C ended them."""
    interrupted = False
    try:
        click.secho(prompt, nl=False, dim=sys.stdout.isatty())
        for piece in stream:
            progress.clear()
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
        stream.close()
    finally:
        progress.clear()
    sys.stdout.write("\n")
    sys.stdout.flush()
    return interrupted


def _prompt(prompt: str | None, prompt_file: Path | None) -> str:
    if prompt is not None and prompt_file is not None:
        raise click.UsageError("expected one of -p and -f, found both")
    if prompt is not None:
        return prompt
    if prompt_file is not None:
        return read_text(prompt_file)
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    return decode(sys.stdin.buffer.read(), "standard input")


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}


def _unescape(text: str) -> str:
    """Backslash escapes as a shell user means them; unknown ones stay as they are."""
    return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[0]), text, flags=re.DOTALL)


def _describe(engine: Engine) -> str:
    info = engine.info
    return (
        f"{engine.file.path}: {info.architecture}, {info.n_layers} layers, "
        f"width {info.d_model}, {info.n_heads} heads on {info.n_kv_heads} KV heads, "
        f"vocabulary {info.n_vocab}\n"
        f"kernels {info.isa}, {info.n_threads} threads, batches of {info.n_batch}, "
        f"context {info.n_ctx} of {info.n_ctx_train}\n"
        f"weights {_mb(info.weight_bytes)} mapped, {_mb(info.decode_bytes)} read per token; "
        f"scratch {_mb(info.scratch_bytes)}; "
        f"KV {info.kv_type}, {_mb(info.kv_page_bytes)} per 32 tokens\n"
        f"weights interleaved in memory: {info.resident_why}"
    )


def _summary(result: Generation) -> str:
    times = result.timings
    parts = [
        f"load {times.load_seconds:.2f} s",
        f"prefill {times.n_prefill} tokens, {times.prefill_tokens_per_second:.1f} tok/s",
        f"decode {times.n_decode} tokens, {times.decode_tokens_per_second:.1f} tok/s",
    ]
    peak = peak_bytes()
    if peak is not None:
        parts.append(f"peak memory {_mb(peak)}")
    parts += [f"seed {result.seed}", f"ended by {result.finish_reason}"]
    return "\n[" + " | ".join(parts) + "]"


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


# ---- chat ----


@_group.command("chat", context_settings=_CONTEXT)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("-m", "--model", "model_option", type=click.Path(path_type=Path), hidden=True)
@click.option("-sys", "--system", help="What the conversation begins with.")
@click.option(
    "--chat-template", "template", metavar="FILE",
    help="Jinja file, or the name of one of the model's own templates.",
)  # fmt: skip
@click.option(
    "--reasoning", type=click.Choice(["show", "hide"]), help="[default: show on a terminal]"
)
@click.option(
    "-n", "--max-tokens", "--predict", "--n-predict", type=int, default=-1,
    help="Tokens per answer at most; -1: until its end.",
)  # fmt: skip
@engine_options
@_sampling_options
@click.option("-v", "--verbose", is_flag=True, help="Show what runs, and the speed of each answer.")
def _chat(
    model: Path | None,
    model_option: Path | None,
    system: str | None,
    template: str | None,
    reasoning: str | None,
    max_tokens: int,
    verbose: bool,
    **options: Any,
) -> int:
    """Talks with MODEL, a GGUF file with a chat template.

    On a terminal /help lists what else can be typed. In a pipe each line is a turn.
    """
    options["max_tokens"] = _max_tokens(max_tokens)
    with open_engine(model or model_option, options) as engine:
        if verbose:
            click.echo(_describe(engine), err=True)
        options["template"] = _template(engine, template)
        return ChatLoop(
            engine,
            system=system,
            reasoning=None if reasoning is None else reasoning == "show",
            options=options,
            report=(lambda reply: click.echo(_summary(reply), err=True)) if verbose else None,
        ).run()


def _template(engine: Engine, given: str | None) -> str | None:
    """Jinja text or a name; a missing template is told before anything is typed."""
    if given is not None and given not in engine.chat_templates.names:
        return read_text(Path(given))
    engine.chat_templates.choose(given)
    return given


# ---- embed ----


@_group.command("embed", context_settings=_CONTEXT)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("-m", "--model", "model_option", type=click.Path(path_type=Path), hidden=True)
@click.option("-p", "--prompt", "prompts", multiple=True, help="A text; repeatable.")
@click.option("-f", "--file", type=click.Path(path_type=Path), help="Of a text a line.")
@click.option("--pooling", type=click.Choice(list(POOLINGS)), help="[default: as the model says]")
@click.option("--normalize/--no-normalize", default=True, help="Vectors of length 1.  [default]")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--npy", type=click.Path(path_type=Path), help="Write an array [texts, width] there.")
@engine_options
@click.option("-q", "--quiet", is_flag=True, help="No summary and no progress.")
def _embed(
    model: Path | None,
    model_option: Path | None,
    prompts: tuple[str, ...],
    file: Path | None,
    **options: Any,
) -> None:
    """Turns texts into vectors with MODEL, a GGUF file: a line of numbers for each.

    Texts come from -p, or a line each from --file or a pipe on standard input.
    """
    texts = read_texts(prompts, file)
    with open_engine(model or model_option, options) as engine:
        run_embed(engine, texts, **options)


# ---- bench ----


@_group.command("bench", context_settings=_CONTEXT)
@click.argument("model", required=False, type=click.Path())
@click.option("-t", "--threads", help="Thread counts, such as 4 or 1..4.  [default: usable cores]")
@click.option("--prefill", default="32,128,512", show_default=True, help="Prompt lengths.")
@click.option("--decode", default=64, show_default=True, help="Tokens one by one; 0: none.")
@click.option("--depth", default="0", show_default=True, help="Tokens held beforehand.")
@click.option("--columns", default="1,2,4,8", show_default=True, help="Sessions decoded together.")
@click.option("--repeat", type=click.IntRange(1, 1000), default=3, show_default=True)
@click.option("-c", "--ctx-size", type=int, help="Context in tokens.")
@kernel_options
@click.option(
    "--json", "json_path", is_flag=False, flag_value="-", help="Write JSON there; alone: to stdout."
)
@click.option("--svg", "svg_path", type=click.Path(), help="Draw a picture there.")
def _bench(
    model: str | None,
    threads: str | None,
    prefill: str,
    decode: int,
    depth: str,
    columns: str,
    repeat: int,
    ctx_size: int | None,
    kv_type: str,
    resident: str,
    isa: str | None,
    json_path: str | None,
    svg_path: str | None,
) -> int:
    """Measures the speed of MODEL here; without one, of the bundled story model."""
    options = {"n_ctx": ctx_size, "kv_type": kv_type, "resident": resident, "isa": isa}
    if threads is None:
        with Engine(model, **options) as engine:  # type: ignore[arg-type]
            threads = str(engine.info.n_threads)
    plan = Plan(
        threads=_at_least_1(numbers(threads, "--threads"), "--threads"),
        prefill=_at_least_1(numbers(prefill, "--prefill"), "--prefill") if prefill else [],
        decode=decode,
        depth=numbers(depth, "--depth"),
        columns=_at_least_1(numbers(columns, "--columns"), "--columns") if columns else [],
        repeat=repeat,
        options=options,
    )
    if decode < 0:
        raise ArgumentError(f"--decode: expected 0 or more, found {decode}")
    head = header(model, plan)
    bench = Bench(model, plan, _bench_status)
    rows: list[Row] = []
    interrupted = False
    try:
        for row in bench.rows():
            rows.append(row)  # one by one: Ctrl-C keeps what was measured
    except KeyboardInterrupt:
        interrupted = True
    finally:
        _bench_status("")
    head["bandwidth_bytes_per_second"] = bench.bandwidth
    head["peak_resident_bytes"] = peak_bytes()
    head["complete"] = not interrupted
    document = json.dumps(
        {**head, "skipped": bench.skipped, "rows": [asdict(row) for row in rows]}, indent=2
    )
    if json_path == "-":
        click.echo(document)
    else:
        click.echo(table(head, rows))
        for line in bench.skipped:
            click.echo(f"skipped {line}", err=True)
    if json_path not in (None, "-"):
        write_whole(Path(str(json_path)), document + "\n")
    if svg_path is not None:
        write_whole(Path(svg_path), picture(head, rows))
    return INTERRUPTED if interrupted else 0


def _at_least_1(values: list[int], name: str) -> list[int]:
    if min(values) < 1:
        raise ArgumentError(f"{name}: expected numbers from 1 on, found {min(values)}")
    return values


def _bench_status(text: str) -> None:
    """One line on a terminal's stderr that says what runs; the empty text takes it away."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text:<70}" + ("" if text else "\r"))
        sys.stderr.flush()


_group.add_command(eval_command)


# ---- inspect and convert ----


@_group.command("inspect", context_settings=_CONTEXT)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--all", "show_all", is_flag=True, help="Show every tensor and whole arrays.")
def _inspect(model: Path | None, as_json: bool, show_all: bool) -> None:
    """Shows what MODEL holds and whether this build can run it; nothing is loaded."""
    path = pyengine.bundled_model() if model is None else model
    with pyengine.ModelFile(path) as file:
        show = inspect_json if as_json else inspect_text
        click.echo(show(file, show_all=show_all))


@_group.command(
    "convert",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def _convert(arguments: tuple[str, ...]) -> int:
    """Converts a Hugging Face checkpoint to GGUF; see `pyengine convert --help`."""
    # Imported here: the engine must run where only the engine is installed.
    from converters.__main__ import main as convert_main

    return convert_main(list(arguments), prog_name="pyengine convert")


@_group.command(
    "quantize",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def _quantize(arguments: tuple[str, ...]) -> int:
    """Writes a GGUF file in fewer bits; see `pyengine quantize --help`."""
    from quantizers.__main__ import main as quantize_main

    # Not standalone: errors and Ctrl-C are told as those of other commands.
    code = quantize_main.main(list(arguments), prog_name="pyengine quantize", standalone_mode=False)
    return code if isinstance(code, int) else 0


# ---- entry ----


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _run_group(arguments: list[str] | None) -> int:
    code = _group.main(arguments, prog_name="pyengine", standalone_mode=False)
    return code if isinstance(code, int) else 0


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and gives the exit code."""
    # A shell can close either stream (`>&-`); Python then has None in its place.
    if sys.stderr is None:
        sys.stderr = io.StringIO()
    if sys.stdout is None:
        click.echo("error: standard output: expected it open, found it closed", err=True)
        return 1
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may not know every character
    return _guarded(lambda: _run_group(arguments))


def _guarded(body: Callable[[], int]) -> int:
    """Runs body; turns every error into one line and an exit code."""
    try:
        return body()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        message, code = error.format_message(), error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except ArgumentError as error:
        message, code = str(error), 2
    except MemoryError as error:
        message, code = str(error) or "out of memory", 1
    except (PyengineError, OSError) as error:
        message, code = str(error), 1
    click.echo(f"error: {_one_line(message)}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
