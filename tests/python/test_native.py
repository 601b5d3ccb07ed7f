"""The C tests, built and run with the system's compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RUNNER = Path(__file__).resolve().parents[1] / "native" / "run.py"


def test_c_programs_pass() -> None:
    result = subprocess.run(
        [sys.executable, str(RUNNER)], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
