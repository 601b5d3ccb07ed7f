"""pyengine beside llama.cpp on the same file, in one run, in interleaved order.

    python bench/compare.py MODEL [-t 2] [--prefill 256] [--decode 64] [--rounds 8]

Needs llama-cpp-python beside pyengine (`make test-reference` sets up such a place).
Each round measures A B B A, so that a machine that slows down slows both; the ratio is
the median over rounds with the middle half of them beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import llama_cpp
import numpy as np

import pyengine

Times = tuple[float, float]


def ours(path: str, threads: int, ids: list[int], n_prefill: int) -> Callable[[], Times]:
    """A measurement of pyengine: seconds of prefill and of the rest one by one."""
    engine = pyengine.Engine(path, n_threads=threads)

    def run() -> Times:
        with engine.session() as session:
            started = time.perf_counter()
            session.feed(ids[:n_prefill])
            middle = time.perf_counter()
            for token in ids[n_prefill:]:
                session.feed([token])
            return middle - started, time.perf_counter() - middle

    return run


def theirs(path: str, threads: int, ids: list[int], n_prefill: int) -> Callable[[], Times]:
    """The same of llama.cpp, through its own Python binding's low-level calls."""
    model = llama_cpp.Llama(
        path,
        n_ctx=len(ids) + 8,
        n_batch=n_prefill,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )

    def run() -> Times:
        model.reset()
        started = time.perf_counter()
        model.eval(ids[:n_prefill])
        middle = time.perf_counter()
        for token in ids[n_prefill:]:
            model.eval([token])
        return middle - started, time.perf_counter() - middle

    return run


def report(name: str, n_tokens: int, a: list[float], b: list[float]) -> None:
    """One line: both speeds and the ratio with its middle half."""
    ratios = sorted(y / x for x, y in zip(a, b, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    click.echo(
        f"{name:<12} pyengine {n_tokens / statistics.median(a):9.1f} tok/s   "
        f"llama.cpp {n_tokens / statistics.median(b):9.1f} tok/s   "
        f"ratio {statistics.median(ratios):5.2f} ({low:.2f} to {high:.2f})"
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option("-t", "--threads", type=int, default=2, show_default=True)
@click.option("--prefill", type=int, default=256, show_default=True)
@click.option("--decode", type=int, default=64, show_default=True)
@click.option("--rounds", type=int, default=8, show_default=True)
def main(model: str, threads: int, prefill: int, decode: int, rounds: int) -> None:
    """Compares on MODEL, a file that both load."""
    with pyengine.ModelFile(model) as file:
        (n_vocab,) = {t.shape[0] for t in file.tensors if t.name == "token_embd.weight"}
    ids = np.random.default_rng(7).integers(0, n_vocab, prefill + decode).tolist()
    a, b = (f(model, threads, ids, prefill) for f in (ours, theirs))
    a(), b()
    times_a: list[Times] = []
    times_b: list[Times] = []
    for _ in range(rounds):
        times_a.append(a())
        times_b += [b(), b()]
        times_a.append(a())
    click.echo(f"{model}, {threads} threads, llama-cpp-python {llama_cpp.__version__}")
    report(f"prefill {prefill}", prefill, [t[0] for t in times_a], [t[0] for t in times_b])
    report(f"decode {decode}", decode, [t[1] for t in times_a], [t[1] for t in times_b])


if __name__ == "__main__":
    main()
