"""Read bandwidth of this machine: the limit of decoding.

python bench/bandwidth.py
"""

from __future__ import annotations

import os

from pyengine._bench import read_bandwidth

if __name__ == "__main__":
    for threads in range(1, (os.cpu_count() or 1) + 1):
        print(f"{threads} threads: {read_bandwidth(threads) / 1e9:.1f} GB/s", flush=True)
