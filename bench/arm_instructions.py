"""Executed Arm instructions per MAC of whole products, ours and llama.cpp's, without an Arm.

    python bench/arm_instructions.py [--level neon] [--ggml DIR]

512 x 2048 weights by 1, 4 and 64 columns of floats, the activations' quantization included,
one thread. QEMU runs the program, a plugin counts; N and 2 N repetitions are subtracted, so
starting up does not count. Instructions are not time: `bench/arm.py` estimates cycles.

DIR is a CMake build of llama.cpp's ggml for 64-bit Arm with static libraries, such as

    cmake -S ggml -B DIR -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \\
        -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \\
        -DCMAKE_C_FLAGS=-mcpu=cortex-a76 -DCMAKE_CXX_FLAGS=-mcpu=cortex-a76 \\
        -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF

(-mcpu=cortex-a72 beside --level neon). Its weights lie where llama.cpp would put them, and the
function with most instructions is named. Both results are compared. Needs a C compiler,
aarch64-linux-gnu-gcc and g++, and qemu-aarch64 (qemu-user; tried: 7.2).
"""

from __future__ import annotations

import bisect
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "bench"
BUILD = ROOT / "build"
SOURCE = ROOT / "native" / "src"
CROSS = "aarch64-linux-gnu-"
QEMU = ["qemu-aarch64", "-cpu", "cortex-a76"]
TOOLS = ("cc", f"{CROSS}gcc", f"{CROSS}g++", f"{CROSS}nm", QEMU[0])
TYPES = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K")
WEIGHTS = 512 * 2048  # of arm_instructions.c
SAME_RESULT = 0.02  # engines round activations differently, some by 32, some by 256


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """What a command printed, or a message that says which one failed and how."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode != 0:
        raise click.ClickException(f"{command[0]}: expected it to succeed: {done.stderr[-2000:]}")
    return done


def build_plugin() -> Path:
    """The plugin that counts, for this machine."""
    target = BUILD / "count_plugin.so"
    run("cc", "-O2", "-shared", "-fPIC", BENCH / "count_plugin.c", "-o", target)
    return target


def build_ours() -> Path:
    """Our kernels, with the flags of the package."""
    target = BUILD / "arm-instructions"
    parts = [p for part in ("base", "format", "kernels") for p in (SOURCE / part).rglob("*.c")]
    includes = [f"-I{ROOT / 'native' / 'include'}"]
    includes += [f"-I{path}" for path in sorted(SOURCE.rglob("*")) if path.is_dir()]
    flags = ["-std=gnu11", "-O3", "-ffp-contract=off", "-static"]
    program = BENCH / "arm_instructions.c"
    run(f"{CROSS}gcc", *flags, *includes, program, *sorted(parts), "-o", target, "-lm", "-lpthread")
    return target


def build_theirs(ggml: Path) -> Path:
    """llama.cpp's, on the libraries of a build folder."""
    target = BUILD / "arm-instructions-ggml"
    cache = ggml / "CMakeCache.txt"
    source = cache.exists() and re.search(
        r"^CMAKE_HOME_DIRECTORY:.*?=(.*)$", cache.read_text(), re.M
    )
    libraries = [lib for name in ("cpu", "base") for lib in ggml.rglob(f"libggml-{name}.a")]
    if not source or len(libraries) != 2:
        raise click.ClickException(
            f"{ggml}: expected a CMake build with libggml-cpu.a and libggml-base.a"
        )
    include = Path(source[1]) / "include"
    program = BENCH / "arm_instructions.c"
    run(f"{CROSS}gcc", "-O3", "-DWITH_GGML", f"-I{include}", "-c", program, "-o", f"{target}.o")
    run(f"{CROSS}g++", "-static", f"{target}.o", *libraries, "-o", target, "-lm", "-lpthread")
    return target


class Program:
    """A program whose instructions are counted, function by function."""

    def __init__(self, path: Path, plugin: Path, level: str) -> None:
        self.path, self.plugin, self.level = path, plugin, level
        self.functions = sorted(
            (int(address, 16), name.split("(")[0])
            for address, kind, name in (
                line.split(maxsplit=2) for line in run(f"{CROSS}nm", "-C", path).stdout.splitlines()
                if line[0] != " "
            )
            if kind in "tTwW" and name[0] != "$"
        )  # fmt: skip

    def count(self, dtype: str, columns: int, repeats: int) -> tuple[Counter[str], float]:
        """Instructions of each function, and the length of the result."""
        command = [*QEMU, "-plugin", self.plugin, self.path, self.level, dtype, columns, repeats]
        done = run(*map(str, command))
        counts: Counter[str] = Counter()
        for line in done.stderr.splitlines():
            address, size, n_runs = line.split()
            at = bisect.bisect(self.functions, (int(address, 16), "\uffff")) - 1
            counts[self.functions[at][1]] += int(size) * int(n_runs)
        return counts, float(done.stdout)

    def per_mac(self, dtype: str, columns: int) -> tuple[float, str, float]:
        """Instructions per MAC of one product, its busiest function, the result's length."""
        once, length = self.count(dtype, columns, 1)
        counts, _ = self.count(dtype, columns, 2)
        counts.subtract(once)
        return counts.total() / (WEIGHTS * columns), counts.most_common(1)[0][0], length


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--level", type=click.Choice(["neon", "dotprod", "scalar"]), default="dotprod")
@click.option("--type", "types", multiple=True, default=TYPES, help="May be given repeatedly.")
@click.option("--columns", type=click.IntRange(1), multiple=True, default=(1, 4, 64))
@click.option("--ggml", type=click.Path(path_type=Path), help="A build of llama.cpp's ggml.")
def main(level: str, types: tuple[str, ...], columns: tuple[int, ...], ggml: Path | None) -> None:
    """Prints one line for each type and number of columns."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise click.ClickException(f"expected these on the path: {', '.join(missing)}")
    BUILD.mkdir(exist_ok=True)
    plugin = build_plugin()
    ours = Program(build_ours(), plugin, level)
    theirs = Program(build_theirs(ggml), plugin, level) if ggml else None
    click.echo(f"{'type':<7}{'columns':>7}{level:>9}  {'busiest':<24}", nl=False)
    click.echo(f"{'llama.cpp':>9}{'ratio':>7}  busiest" if theirs else "")
    for dtype in types:
        for n in columns:
            found, function, length = ours.per_mac(dtype, n)
            click.echo(f"{dtype:<7}{n:>7}{found:>9.3f}  {function:<24}", nl=False)
            if theirs:
                other, function, their_length = theirs.per_mac(dtype, n)
                if abs(their_length - length) > SAME_RESULT * length:
                    raise click.ClickException(
                        f"{dtype}: expected like results, found {length} and {their_length}"
                    )
                click.echo(f"{other:>9.3f}{found / other:>7.2f}  {function}", nl=False)
            click.echo()


if __name__ == "__main__":
    main()
