"""Builds and runs the C tests with the system's C compiler and nothing else.

    python tests/native/run.py                                      all tests
    python tests/native/run.py test_kv check_kernels                some
    CC=clang EXTRA="-fsanitize=address,undefined" python tests/native/run.py
    CC=aarch64-linux-gnu-gcc EXTRA=-static RUNNER="qemu-aarch64 -cpu cortex-a72" ...

Objects go to build/native/<compiler and flags>, and only what changed is compiled.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = Path(__file__).resolve().parent
SOURCE = ROOT / "native" / "src"
CC = shlex.split(os.environ.get("CC", "cc"))
EXTRA = shlex.split(os.environ.get("EXTRA", ""))
RUNNER = shlex.split(os.environ.get("RUNNER", ""))
FLAGS = shlex.split(
    "-std=c11 -O2 -g -ffp-contract=off -Wall -Wextra -Wpedantic -Wconversion -Wshadow"
    " -Wstrict-prototypes -Wmissing-prototypes -Werror"
)
INCLUDES = [
    f"-I{folder}"
    for folder in (ROOT / "native" / "include", TESTS, *sorted(SOURCE.rglob("*")))
    if folder.is_dir()
]
BUILD = ROOT / "build" / "native" / hashlib.sha256(repr((CC, EXTRA)).encode()).hexdigest()[:12]
# Link-time replacements that let tests make allocation fail; see test_engine.c.
WRAPS = ["-Wl,--wrap=aligned_alloc"]


def compile_one(source: Path, newest_header: float) -> Path:
    """Compiles one file unless its object is newer than it and all headers."""
    target = BUILD / f"{source.parent.name}-{source.stem}.o"
    if target.exists() and target.stat().st_mtime > max(source.stat().st_mtime, newest_header):
        return target
    subprocess.run(
        [*CC, *FLAGS, *EXTRA, *INCLUDES, "-c", str(source), "-o", str(target)], check=True
    )
    return target


def main(names: list[str]) -> int:
    """Builds and runs the named tests, or all; gives the number that failed."""
    programs = sorted(p for p in TESTS.glob("*.c") if p.stem.startswith(("test_", "check_")))
    helpers = sorted(p for p in TESTS.glob("*.c") if p not in programs)
    if names:
        programs = [p for p in programs if p.stem in names]
    BUILD.mkdir(parents=True, exist_ok=True)
    headers = [*ROOT.glob("native/**/*.h"), *TESTS.glob("*.h")]
    newest_header = max(path.stat().st_mtime for path in headers)
    sources = [*sorted(SOURCE.rglob("*.c")), *helpers, *programs]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda s: compile_one(s, newest_header), sources))
    shared = objects[: len(objects) - len(programs)]
    failed = []
    for program, own in zip(programs, objects[len(shared) :], strict=True):
        binary = BUILD / program.stem
        link = [*CC, *EXTRA, str(own), *map(str, shared), *WRAPS, "-lm", "-lpthread"]
        subprocess.run([*link, "-o", str(binary)], check=True)
        print(f"{program.stem}:", flush=True)
        if subprocess.run([*RUNNER, str(binary)]).returncode != 0:
            failed.append(program.stem)
    print(f"C tests: {len(programs) - len(failed)} programs passed, {len(failed)} failed", *failed)
    return len(failed)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
