"""pyengine bench: figures, formats, bad input; and several sessions in one pass."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

import pyengine
from pyengine import _bench, _session
from pyengine._cli import main

SMALL = ["--prefill", "4,8", "--decode", "3", "--depth", "0,40", "--columns", "1,3"]


@pytest.fixture(autouse=True)
def _small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bench, "_PROBE_BYTES", 1 << 20)


def test_a_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *SMALL, "-t", "1..2", "--repeat", "1"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    # 2 thread counts x (load, 2 depths x (2 prefills, decode), 2 numbers of sessions)
    assert len(lines) == 3 + 2 * (1 + 2 * 3 + 2)
    assert "Q4_0" in lines[0]
    assert shown.err == ""  # quiet where nobody watches


def test_json_has_a_rate_in_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "bench.json"
    svg = tmp_path / "bench.svg"
    assert main(["bench", *SMALL, "-t", "1", "--json", str(target), "--svg", str(svg)]) == 0
    assert "tok/s" in capsys.readouterr().out
    document = json.loads(target.read_text())
    assert document["complete"] is True
    assert document["model"]["type"] == "Q4_0"
    assert document["peak_resident_bytes"] > 1e6
    for row in document["rows"]:
        assert row["tokens_per_second"] > 0
        assert row["seconds"] > 0
        expected = row["n_tokens"] * row["columns"] / row["seconds"]
        assert row["tokens_per_second"] == pytest.approx(expected)
    works = {(r["work"], r["depth"], r["columns"]) for r in document["rows"]}
    assert ("decode", 40, 1) in works
    assert ("columns", 0, 3) in works
    assert ElementTree.fromstring(svg.read_text()).tag.endswith("svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.svg"]


def test_json_alone_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "-t", "1", "--prefill", "4", "--decode", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]


def test_what_the_context_cannot_hold_is_left_out_and_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--depth", "0,60,100", "--prefill", "8", "--decode", "2", "--repeat", "1"]
    assert main(["bench", "-c", "64", "-t", "1", *arguments]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "skipped prefill 8 at depth 60: the context holds 64",
        "skipped depth 100: the context holds 64",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-t", "x"], "--threads: expected numbers such as"),
        (["-t", "0"], "--threads: expected numbers from 1 on, found 0"),
        (["-t", "4..1"], "--threads: expected a rising range"),
        (["--prefill", "0"], "--prefill: expected numbers from 1 on"),
        (["--prefill", "5,,6"], "--prefill: expected numbers"),
        (["--decode", "-1"], "--decode: expected 0 or more, found -1"),
        (["--columns", "-2"], "--columns: expected numbers"),
        (["--repeat", "0"], "repeat"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_model_or_target_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(tmp_path / "none.gguf")]) == 1
    assert "none.gguf" in capsys.readouterr().err
    target = tmp_path / "no" / "bench.json"
    small = ["--prefill", "4", "--decode", "0", "--columns", "1", "--repeat", "1", "-t", "1"]
    assert main(["bench", *small, "--json", str(target)]) == 1
    assert "bench.json" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_bench, "feed_together", interrupted)
    assert main(["bench", "-t", "1", "--prefill", "4", "--decode", "2", "--json"]) == 130
    document = json.loads(capsys.readouterr().out)
    assert document["complete"] is False
    assert [row["work"] for row in document["rows"]] == ["load", "prefill", "decode"]


def test_sessions_in_one_pass_give_the_bits_they_give_alone() -> None:
    with pyengine.Engine(n_threads=2, n_ctx=64) as engine:
        prompts = [[1, 2, 3], [7], [9, 10, 11, 12, 13]]
        sessions = [engine.session() for _ in prompts]
        for session, prompt in zip(sessions, prompts, strict=True):
            session.feed(prompt)
        together = _session.feed_together(engine, sessions, 5)
        for row, prompt in zip(together, prompts, strict=True):
            assert np.array_equal(row, engine.logits([*prompt, 5])[-1])
