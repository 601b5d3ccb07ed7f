"""What this machine's memory delivers: the limit that decoding is measured against."""

from __future__ import annotations

import threading
import time

import numpy as np

# Far larger than any cache; each thread reads its own part.
PROBE_BYTES = 1 << 30
ROUNDS = 5


def read_bandwidth(n_threads: int) -> float:
    """Bytes per second that n_threads read together, the best of a few rounds.

    numpy's maximum of 64-bit integers reads memory as fast as anything here does and
    releases the interpreter lock.
    """
    parts = np.array_split(np.ones(PROBE_BYTES // 8, np.int64), n_threads)
    best = 0.0
    for _ in range(ROUNDS):
        workers = [threading.Thread(target=part.max) for part in parts]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, PROBE_BYTES / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    for threads in (1, 2, 4):
        print(f"{threads} threads: {read_bandwidth(threads) / 1e9:.1f} GB/s")
