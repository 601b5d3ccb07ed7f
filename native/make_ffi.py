"""Writes pyengine/_ffi.c, the compiled half of the Python binding, from pe_api.h.

The file is committed so that building a wheel needs no cffi and runs no code of ours;
`make ffi` rewrites it and `make ffi-check` fails when it is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cffi

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "native" / "include" / "pe_api.h"
OUTPUT = ROOT / "pyengine" / "_ffi.c"


def main(out: Path) -> None:
    """Generates the binding into out."""
    builder = cffi.FFI()
    builder.cdef(HEADER.read_text())
    builder.set_source("pyengine._ffi", '#include "pyengine.h"', py_limited_api=True)
    builder.emit_c_code(str(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT)
