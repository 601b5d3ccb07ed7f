"""The house's own rules: layers, exports, build inputs, versions."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pyengine
from pyengine import _native

ROOT = Path(__file__).resolve().parents[2]
HEADER = (ROOT / "native/include/pe_api.h").read_text()


def test_layers_are_in_order() -> None:
    checker = ROOT / "tests/house/check_layers.py"
    result = subprocess.run([sys.executable, str(checker)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_build_lists_every_source_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (extension,) = project["tool"]["setuptools"]["ext-modules"]
    on_disk = {str(p.relative_to(ROOT)) for p in (ROOT / "native/src").rglob("*.c")}
    assert set(extension["sources"]) == on_disk | {"pyengine/_ffi.c"}


def test_binding_knows_every_declared_function() -> None:
    declared = set(re.findall(r"^\w[\w *]*?\b(pe_\w+)\(", HEADER, re.MULTILINE))
    assert declared <= set(dir(_native.lib))
    assert len(declared) > 20


def test_every_status_has_an_exception() -> None:
    codes = {getattr(_native.lib, n) for n in dir(_native.lib) if n.startswith("PE_ERR_")}
    assert codes == set(_native.EXCEPTIONS)


def test_table_of_models_is_current() -> None:
    made = runpy.run_path(str(ROOT / "docs/make_models.py"))["text"]()
    assert made == (ROOT / "docs/MODELS.md").read_text("utf-8")


def test_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["version"] == pyengine.__version__
    assert f"## {pyengine.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF symbols with nm")
def test_extension_exports_only_its_init_function() -> None:
    (library,) = (ROOT / "pyengine").glob("_ffi*.so")
    result = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
    )
    exported = {line.split()[-1] for line in result.stdout.splitlines()}
    declared = set(re.findall(r"^\w[\w *]*?\b(pe_\w+)\(", HEADER, re.MULTILINE))
    assert exported - {"PyInit__ffi"} <= declared


def test_core_never_ends_or_prints_to_its_host() -> None:
    forbidden = re.compile(r"\b(abort|exit|_exit|assert|printf|puts|fprintf|signal)\s*\(")
    for path in (ROOT / "native/src").rglob("*.[ch]"):
        code = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.DOTALL)
        code = re.sub(r'"(\\.|[^"\\])*"', '""', code)
        found = forbidden.search(code)
        assert found is None, f"{path.relative_to(ROOT)}: {found and found[0]}"
