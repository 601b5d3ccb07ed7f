"""pyengine beside llama.cpp, and any other engine, on the same file in one run.

    python bench/compare.py MODEL [-t 2] [--prefill 256] [--decode 64] [--depth 0]
                            [--kv f16] [--rounds 8] [--other NAME=COMMAND] [--json]

Needs llama-cpp-python beside pyengine (`make test-reference` sets up such a place).
llama.cpp runs with flash attention and without; the better of the two, work by work, is
what we are measured against. Each round goes through all engines and back again, so that
a machine that slows down slows all of them; a ratio is the median over rounds, with a
bootstrapped 95 % interval beside it.

COMMAND is a shell command with {model}, {threads}, {prefill}, {decode} and {depth} in it,
which prints a JSON object with prefill_tokens_per_second and decode_tokens_per_second.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import llama_cpp
import numpy as np

import pyengine
from pyengine._bench import settle

Times = tuple[float, float]  # seconds of prefill, of decoding


@dataclass(frozen=True)
class Work:
    """What every engine does: hold depth tokens, then feed a prompt, then single tokens."""

    model: str
    threads: int
    prefill: int
    decode: int
    depth: int
    kv: str
    tokens: list[int]

    @property
    def prompt(self) -> list[int]:
        return self.tokens[self.depth : self.depth + self.prefill]

    @property
    def singles(self) -> list[int]:
        return self.tokens[self.depth + self.prefill :]


def ours(work: Work) -> Callable[[], Times]:
    """A measurement of pyengine."""
    engine = pyengine.Engine(work.model, n_threads=work.threads, kv_type=work.kv)
    settle(engine)
    past = engine.session()
    if work.depth:
        past.feed(work.tokens[: work.depth], logits="none")

    def run() -> Times:
        with past.fork() as session:
            started = time.perf_counter()
            session.feed(work.prompt)
            middle = time.perf_counter()
            for token in work.singles:
                session.feed([token])
            return middle - started, time.perf_counter() - middle

    return run


def theirs(work: Work, flash_attention: bool) -> Callable[[], Times]:
    """The same of llama.cpp, through its own Python binding's low-level calls."""
    kinds = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0}
    model = llama_cpp.Llama(
        work.model,
        n_ctx=len(work.tokens) + 8,
        n_batch=max(work.prefill, 512),
        n_threads=work.threads,
        n_threads_batch=work.threads,
        flash_attn=flash_attention,
        type_k=kinds[work.kv],
        type_v=kinds[work.kv],
        verbose=False,
    )
    if work.depth:
        model.eval(work.tokens[: work.depth])

    def run() -> Times:
        model.n_tokens = work.depth  # eval() drops what lies behind it
        started = time.perf_counter()
        model.eval(work.prompt)
        middle = time.perf_counter()
        for token in work.singles:
            model.eval([token])
        return middle - started, time.perf_counter() - middle

    return run


def other(work: Work, command: str) -> Callable[[], Times]:
    """An engine that a command runs."""
    names = ("model", "threads", "prefill", "decode", "depth")
    line = command.format(**{name: getattr(work, name) for name in names})

    def run() -> Times:
        done = subprocess.run(line, shell=True, check=True, capture_output=True, text=True)
        rates = json.loads(done.stdout)
        return (
            work.prefill / rates["prefill_tokens_per_second"],
            work.decode / rates["decode_tokens_per_second"],
        )

    return run


def interval(ratios: list[float]) -> tuple[float, float]:
    """The middle 95 % of the medians of resamples."""
    rng = np.random.default_rng(1)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)


def compare(name: str, n_tokens: int, times: dict[str, list[float]]) -> dict[str, Any]:
    """The speeds of one work and the ratio to each peer; llama.cpp's best counts as one."""
    speeds = {engine: n_tokens / statistics.median(found) for engine, found in times.items()}
    peers = [engine for engine in speeds if engine != "pyengine"]
    best = max((p for p in peers if p.startswith("llama.cpp")), key=speeds.__getitem__)
    ratios = {}
    for peer in (best, *(p for p in peers if not p.startswith("llama.cpp"))):
        pairs = [b / a for a, b in zip(times["pyengine"], times[peer], strict=True)]
        ratios[peer] = {"ratio": statistics.median(pairs), "interval": interval(pairs)}
    return {"work": name, "tokens_per_second": speeds, "ratios": ratios}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option("-t", "--threads", type=int, default=2, show_default=True)
@click.option("--prefill", type=int, default=256, show_default=True)
@click.option("--decode", type=int, default=64, show_default=True)
@click.option("--depth", type=int, default=0, show_default=True, help="Tokens held beforehand.")
@click.option("--kv", type=click.Choice(["f16", "q8_0"]), default="f16", show_default=True)
@click.option("--rounds", type=int, default=8, show_default=True)
@click.option("--other", "others", multiple=True, metavar="NAME=COMMAND")
@click.option("--json", "as_json", is_flag=True)
def main(
    model: str,
    threads: int,
    prefill: int,
    decode: int,
    depth: int,
    kv: str,
    rounds: int,
    others: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compares on MODEL, a file that all of them load."""
    with pyengine.ModelFile(model) as file:
        (n_vocab,) = {t.shape[0] for t in file.tensors if t.name == "token_embd.weight"}
    tokens = np.random.default_rng(7).integers(0, n_vocab, depth + prefill + decode).tolist()
    work = Work(model, threads, prefill, decode, depth, kv, tokens)
    engines = {
        "pyengine": ours(work),
        "llama.cpp": theirs(work, False),
        "llama.cpp -fa": theirs(work, True),
    }
    if kv != "f16":
        del engines["llama.cpp"]  # it quantizes V with flash attention only
    for entry in others:
        name, found, command = entry.partition("=")
        if not found:
            raise click.UsageError(f"--other: expected NAME=COMMAND, found {entry!r}")
        engines[name] = other(work, command)
    for run in engines.values():
        run()
    times: dict[str, list[Times]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name in (*engines, *reversed(engines)):
            times[name].append(engines[name]())
    results = [
        compare(f"prefill {prefill}", prefill, {n: [t[0] for t in f] for n, f in times.items()}),
        compare(f"decode {decode}", decode, {n: [t[1] for t in f] for n, f in times.items()}),
    ]
    head = {"model": model, "threads": threads, "depth": depth, "kv": kv}
    head["llama_cpp_python"] = llama_cpp.__version__
    if as_json:
        click.echo(json.dumps({**head, "rows": results}, indent=2))
        return
    click.echo(", ".join(f"{key} {value}" for key, value in head.items()))
    for row in results:
        speeds = "   ".join(f"{n} {v:.1f}" for n, v in row["tokens_per_second"].items())
        click.echo(f"{row['work']:<12} tok/s: {speeds}")
        for peer, found in row["ratios"].items():
            low, high = found["interval"]
            click.echo(f"{'':<12} {found['ratio']:.2f} times {peer} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
