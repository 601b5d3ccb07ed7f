"""Estimates for the Raspberry Pi 5's core, without one: cycles and instructions per MAC.

    python bench/arm.py

Compiles the dot-product kernels for 64-bit Arm, takes the innermost loops that hold whole
tiles (8 rows by 4 columns by 32 weights: 64 SDOT) and asks llvm-mca for their cycles on
Neoverse N1, the Cortex-A76's sibling. Caches are ignored: an upper bound. Needs
aarch64-linux-gnu-gcc and llvm-mca 17 or later (LLVM_MCA names another one): before, the
name stood for a Cortex-A57, whose cycles are others.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "native" / "src"
COMPILER = "aarch64-linux-gnu-gcc"
TILE_DOTS = 64
TILE_MACS = TILE_DOTS * 16
PEAK_MACS = 32  # per cycle: two SDOT of 16 products
OLDEST_MCA = 17
KINDS = {
    "multiply_plain": "Q4_0, Q5_0, Q8_0, IQ4, MXFP4",
    "multiply_min": "Q4_1, Q5_1, Q4_K, Q5_K",
    "multiply_two": "Q3_K, Q6_K",
    "multiply_two_min": "Q2_K",
}


def assembly() -> str:
    """The kernels as the package compiles them."""
    includes = [f"-I{ROOT / 'native' / 'include'}"]
    includes += [f"-I{path}" for path in sorted(SOURCE.rglob("*")) if path.is_dir()]
    flags = ["-std=c11", "-O3", "-ffp-contract=off", "-S", "-o", "-"]
    source = str(SOURCE / "kernels" / "arm" / "dotprod.c")
    done = subprocess.run(
        [COMPILER, *flags, *includes, source], check=True, capture_output=True, text=True
    )
    return done.stdout


def tile_loop(text: str, function: str) -> list[str] | None:
    """The instructions of the loop with a whole tile's SDOTs and the fewest others."""
    body = re.search(rf"^{function}:\n(.*?)^\t\.size\t{function},", text, re.M | re.S)
    if body is None:
        return None
    lines = body[1].splitlines()
    places = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    loops = []
    for i, line in enumerate(lines):
        jump = re.match(r"\tb\.?\w*\t(?:.*, )?(\.L\w+)$|\tcbn?z\t\w+, (\.L\w+)$", line)
        start = places.get((jump[1] or jump[2]) if jump else "", len(lines))
        inside = [x for x in lines[start : i + 1] if re.match(r"\t[a-z]", x)]
        if start < i and sum("sdot" in x for x in inside) == TILE_DOTS:
            loops.append(inside)
    return min(loops, key=len, default=None)


def cycles_of(loop: list[str], mca: str) -> float:
    """Cycles per iteration, by llvm-mca."""
    code = "\n".join([*loop[:-1], ""])  # its backward branch is free when predicted
    done = subprocess.run(
        [mca, "-mtriple=aarch64", "-mcpu=neoverse-n1", "-iterations=200"],
        input=code, capture_output=True, text=True, check=True,
    )  # fmt: skip
    total = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert total is not None
    return int(total[1]) / 200


def find_mca() -> str:
    """The name of an llvm-mca that has a model of the core."""
    chosen = os.environ.get("LLVM_MCA")
    for name in (chosen,) if chosen else ("llvm-mca", "llvm-mca-19"):
        if shutil.which(name):
            text = subprocess.run([name, "--version"], capture_output=True, text=True).stdout
            version = re.search(r"version (\d+)", text)
            if version is not None and int(version[1]) >= OLDEST_MCA:
                return name
    raise click.ClickException(f"expected llvm-mca {OLDEST_MCA} or later (LLVM_MCA names one)")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Prints one line for each kind of panel."""
    mca = find_mca()
    if shutil.which(COMPILER) is None:
        raise click.ClickException(f"expected {COMPILER} on the path")
    text = assembly()
    click.echo(f"{'types':<32}{'cycles':>8}{'MAC/cycle':>11}{'of peak':>9}{'instr./MAC':>12}")
    for function, types in KINDS.items():
        loop = tile_loop(text, function)
        if loop is None:
            click.echo(f"{types:<32}  no loop with {TILE_DOTS} SDOT found")
            continue
        cycles = cycles_of(loop, mca)
        rate = TILE_MACS / cycles
        click.echo(
            f"{types:<32}{cycles:>8.1f}{rate:>11.1f}{rate / PEAK_MACS:>9.0%}"
            f"{len(loop) / TILE_MACS:>12.3f}"
        )


if __name__ == "__main__":
    main()
