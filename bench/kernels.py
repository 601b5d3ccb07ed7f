"""Speed of the matrix products alone, beside the peak and the bandwidth of the same run.

    python bench/kernels.py [--isa avx512] [--type Q4_0] [--json]

Needs a C compiler. GEMV is one column over a buffer far larger than the caches: its GB/s
stand against what plain loads reach. Prefill is 504 columns from cache: its GMAC/s stand
against the integer peak in registers, for float weights against the float one. In between,
the time of a pass over the weights is given as a multiple of the one-column pass, which is
what speculation and many users pay.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "native" / "src"
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off"]
PARTS = ("base", "format", "kernels")
COLUMNS = (2, 4, 8, 16)
FLOATS = ("F32", "F16", "BF16")


def build() -> Path:
    """Compiles the program; the compiler's messages pass through."""
    target = ROOT / "build" / "bench-kernels"
    target.parent.mkdir(exist_ok=True)
    includes = [f"-I{ROOT / 'native' / 'include'}"]
    includes += [f"-I{path}" for path in sorted(SOURCE.rglob("*")) if path.is_dir()]
    sources = [str(path) for part in PARTS for path in sorted((SOURCE / part).rglob("*.c"))]
    compiler = shlex.split(os.environ.get("CC", "cc"))
    program = str(ROOT / "bench" / "kernels.c")
    subprocess.run(
        [*compiler, *FLAGS, *includes, program, *sources, "-o", str(target), "-lm", "-lpthread"],
        check=True,
    )
    return target


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--isa", default="", help="One instruction set, scalar included.")
@click.option("--type", "dtype", default="", help="One tensor type, such as Q4_0.")
@click.option("--json", "as_json", is_flag=True)
def main(isa: str, dtype: str, as_json: bool) -> None:
    """Measures every type on every instruction set of this machine."""
    try:
        program = build()
    except (OSError, subprocess.CalledProcessError) as error:
        raise click.ClickException(f"bench/kernels.c: expected it to compile: {error}") from None
    read = 0.0
    peaks: dict[str, float] = {}
    float_peaks: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    current: dict[int, tuple[float, float]] = {}
    if not as_json:
        click.echo(f"{'type':<8}{'layout':<8}{'isa':<9}{'1 column':>22}", nl=False)
        click.echo("".join(f"{f'x{c}':>7}" for c in COLUMNS) + f"{'504 columns':>26}")
    with subprocess.Popen([program, isa, dtype], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            name, layout, level, columns, gmacs, gbytes, _ = line.rstrip("\n").split("\t")
            if name == "read":
                read = float(gbytes)
            elif name == "peak":
                peaks[level] = float(gmacs)
            elif name == "float peak":
                float_peaks[level] = float(gmacs)
            else:
                current[int(columns)] = (float(gmacs), float(gbytes))
                if int(columns) == 504:
                    peak = (float_peaks if name in FLOATS else peaks)[level]
                    rows.append(_row(name, layout, level, current, read, peak))
                    current = {}
                    if not as_json:
                        click.echo(_line(rows[-1]))
    if process.returncode != 0:
        raise click.ClickException(f"{program}: ended with code {process.returncode}")
    if as_json:
        head = {
            "read_gb_per_second": read,
            "peak_gmac_per_second": peaks,
            "float_peak_gmac_per_second": float_peaks,
        }
        click.echo(json.dumps({**head, "rows": rows}, indent=2))
    else:
        shown = ", ".join(
            f"{k} {v:.0f} GMAC/s, floats {float_peaks[k]:.0f}" for k, v in peaks.items() if v
        )
        click.echo(f"one thread: memory {read:.1f} GB/s; peak {shown}")


def _row(
    name: str,
    layout: str,
    level: str,
    found: dict[int, tuple[float, float]],
    read: float,
    peak: float,
) -> dict[str, Any]:
    return {
        "type": name,
        "layout": layout,
        "isa": level,
        "gb_per_second": found[1][1],
        "share_of_bandwidth": found[1][1] / read,
        "pass_time": {c: found[1][1] / found[c][1] for c in COLUMNS},
        "gmac_per_second": found[504][0],
        "share_of_peak": found[504][0] / peak if peak else None,
    }


def _line(row: dict[str, Any]) -> str:
    share = row["share_of_peak"]
    return (
        f"{row['type']:<8}{row['layout']:<8}{row['isa']:<9}{row['gb_per_second']:>11.1f} GB/s "
        f"{row['share_of_bandwidth']:>5.0%}"
        + "".join(f"{row['pass_time'][c]:>7.2f}" for c in COLUMNS)
        + f"{row['gmac_per_second']:>14.0f} GMAC/s "
        + (f"{share:>5.0%}" if share else "")
    )


if __name__ == "__main__":
    main()
