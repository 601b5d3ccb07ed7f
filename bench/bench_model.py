"""Prefill and decode speed of one model, beside what the memory allows.

    python bench/bench_model.py [MODEL] [-t 1 -t 2] [--prefill 32 --prefill 256] [--json]

Every figure is the median of a few rounds. Decode is also given as the share of the
measured memory bandwidth that reading the weights once per token amounts to; a model
that fits the caches can exceed it.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from typing import Any

import click
import numpy as np
from bandwidth import read_bandwidth

import pyengine


def measure(engine: pyengine.Engine, n_prefill: int, n_decode: int) -> tuple[float, float]:
    """Seconds to feed n_prefill tokens, and to feed n_decode more one by one."""
    ids = np.random.default_rng(7).integers(0, engine.n_vocab, n_prefill + n_decode)
    with engine.session() as session:
        started = time.perf_counter()
        session.feed(ids[:n_prefill])
        middle = time.perf_counter()
        for token in ids[n_prefill:]:
            session.feed([int(token)])
        return middle - started, time.perf_counter() - middle


def rows_of(
    model: str | None, threads: int, prefills: tuple[int, ...], n_decode: int, rounds: int
) -> list[dict[str, Any]]:
    """One row per figure."""
    rows: list[dict[str, Any]] = []
    bandwidth = read_bandwidth(threads)
    with pyengine.Engine(model, n_threads=threads) as engine:
        info = engine.info
        common = {"threads": threads, "isa": info.isa, "load_seconds": engine.load_seconds}
        measure(engine, 8, 4)  # touches every page of the file
        for n_prefill in prefills:
            times = [measure(engine, n_prefill, n_decode) for _ in range(rounds)]
            prefill = statistics.median(t[0] for t in times)
            decode = statistics.median(t[1] for t in times) / n_decode
            rows.append(
                common
                | {
                    "work": f"prefill {n_prefill}",
                    "tokens_per_second": n_prefill / prefill,
                }
            )
            rows.append(
                common
                | {
                    "work": f"decode {n_decode} at {n_prefill}",
                    "tokens_per_second": 1 / decode,
                    "gigabytes_per_second": info.decode_bytes / decode / 1e9,
                    "share_of_bandwidth": info.decode_bytes / decode / bandwidth,
                }
            )
    return rows


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", required=False)
@click.option("-t", "--threads", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option("--prefill", type=int, multiple=True, default=(32, 256), show_default=True)
@click.option("--decode", type=int, default=64, show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    model: str | None,
    threads: tuple[int, ...],
    prefill: tuple[int, ...],
    decode: int,
    rounds: int,
    as_json: bool,
) -> None:
    """Benchmarks MODEL, by default the bundled one."""
    rows = [row for t in threads for row in rows_of(model, t, prefill, decode, rounds)]
    if as_json:
        machine = {"machine": platform.machine(), "processor": platform.processor()}
        click.echo(json.dumps({"machine": machine, "rows": rows}, indent=2))
        return
    for row in rows:
        extra = ""
        if "share_of_bandwidth" in row:
            extra = (
                f"{row['gigabytes_per_second']:7.1f} GB/s, "
                f"{row['share_of_bandwidth']:4.0%} of the memory's"
            )
        click.echo(
            f"{row['threads']} threads  {row['isa']:<8}{row['work']:<20}"
            f"{row['tokens_per_second']:10.1f} tok/s  {extra}"
        )


if __name__ == "__main__":
    main()
