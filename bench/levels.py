"""One instruction set beside another on the same file, interleaved in one process.

    python bench/levels.py MODEL [-a avx2] [-b avx512] [-t 1 -t 2] [--decode 8]

The results of both are the same bits; only the time differs.
"""

from __future__ import annotations

import statistics
import time

import click
import numpy as np

import pyengine

N_PROMPT = 4


def decode_seconds(engine: pyengine.Engine, ids: list[int]) -> float:
    """Seconds per token, fed one by one behind a short prompt."""
    with engine.session() as session:
        session.feed(ids[:N_PROMPT])
        started = time.perf_counter()
        for token in ids[N_PROMPT:]:
            session.feed([token])
        return (time.perf_counter() - started) / (len(ids) - N_PROMPT)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", required=False)
@click.option("-a", default="avx2", show_default=True)
@click.option("-b", default="avx512", show_default=True)
@click.option("-t", "--threads", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option("--decode", type=int, default=8, show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True)
def main(
    model: str | None, a: str, b: str, threads: tuple[int, ...], decode: int, rounds: int
) -> None:
    """Compares decoding with instruction sets A and B, by default on the bundled model."""
    for n_threads in threads:
        with (
            pyengine.Engine(model, n_threads=n_threads, isa=a) as first,  # type: ignore[arg-type]
            pyengine.Engine(model, n_threads=n_threads, isa=b) as second,  # type: ignore[arg-type]
        ):
            rng = np.random.default_rng(7)
            ids = rng.integers(0, first.n_vocab, N_PROMPT + decode).tolist()
            times: dict[pyengine.Engine, list[float]] = {first: [], second: []}
            for _ in range(rounds):
                for engine in (first, second, second, first):
                    times[engine].append(decode_seconds(engine, ids))
            x, y = (statistics.median(times[engine]) for engine in (first, second))
            gigabytes = first.info.decode_bytes / 1e9
            click.echo(
                f"{n_threads} threads  {a} {1 / x:8.1f} tok/s {gigabytes / x:5.1f} GB/s   "
                f"{b} {1 / y:8.1f} tok/s {gigabytes / y:5.1f} GB/s   ratio {x / y:.2f}"
            )


if __name__ == "__main__":
    main()
