"""`pyengine eval` as its user meets it."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli import on_terminal, run
from tiny import Shape

from pyengine import Engine, Task, evaluate
from pyengine._cli import main
from pyengine._report import document

Maker = Callable[[Shape], Path]
TEXT = "the cat and the other one was in town; " * 12


@pytest.fixture
def model(make_model: Maker) -> str:
    return str(make_model(Shape(dtype="Q4_0")))


@pytest.fixture
def base(make_model: Maker) -> str:
    return str(make_model(Shape()))


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture
def arc(tmp_path: Path) -> str:
    path = tmp_path / "arc.jsonl"
    path.write_text(
        "\n".join(
            json.dumps(
                {
                    "question": f"the {word}",
                    "choices": {"text": ["cat", "a town", "one"], "label": ["A", "B", "C"]},
                    "answerKey": "ABC"[i % 3],
                }
            )
            for i, word in enumerate(["one", "and", "other", "was", "in", "town", "with", "she"])
        )
    )
    return str(path)


def test_json_is_what_python_measures(
    model: str, base: str, text: str, arc: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    arguments = ["--perplexity", text, "--window", "40", "--kl-against", base, "--arc", arc]
    assert main(["eval", model, "--compare", base, *arguments, "-t", "1", "--json", str(out)]) == 0
    shown, err = capsys.readouterr()
    assert err == ""
    with Engine(model) as one, Engine(base) as other, Engine(base) as reference:
        found = evaluate(
            one,
            text=TEXT,
            window=40,
            reference=reference,
            compare=other,
            tasks=[Task.read("arc", arc)],
        )
    written = json.loads(out.read_text())
    assert written == json.loads(json.dumps(document(found), allow_nan=False))
    assert written["complete"] is True
    assert written["window"] == 40
    first, second = written["models"]
    assert first["path"] == model
    assert first["tasks"][0]["accuracies"]["acc"]["value"] == pytest.approx(
        found.models[0].tasks[0].accuracies["acc"].value
    )
    assert len(first["divergence"]["by_position"]) == 19
    assert second["divergence"]["mean"]["value"] == 0
    assert written["differences"][1]["better"] == 1
    for fact in (
        f"{first['perplexity']['value']:.4f} ± {first['perplexity']['error']:.4f}",
        f"{first['divergence']['mean']['value']:.6f} ± ",
        "same most likely token",
        "arc acc_norm",
        "second less first, 95 % confidence intervals",
    ):
        assert fact in shown


def test_what_is_infinite_is_null_in_json(
    model: str, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--text", TEXT[:90], "--window", "40", "--kl-against", base, "--compare", base]
    assert main(["eval", model, *arguments, "--json"]) == 0
    written = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert written["models"][0]["perplexity"]["n_windows"] == 1
    assert written["models"][0]["divergence"]["p99"]["high"] is None
    assert written["differences"][0]["low"] is None


@pytest.mark.parametrize("window", [40, 41])
def test_the_picture_is_svg_with_a_curve_per_model(
    model: str, base: str, tmp_path: Path, window: int
) -> None:
    out = tmp_path / "out.svg"
    arguments = ["--text", TEXT, "--window", str(window), "--kl-against", base]
    assert main(["eval", model, "--compare", base, *arguments, "--picture", str(out)]) == 0
    root = ET.fromstring(out.read_text())
    space = "{http://www.w3.org/2000/svg}"
    curves = root.findall(f"{space}polyline")
    assert len(curves) == len(root.findall(f"{space}polygon")) == 2
    points = [tuple(map(float, p.split(","))) for p in curves[0].attrib["points"].split()]
    # Tokens 21 to 39, or 21 to 40, of a window.
    assert len(points) == window - 21
    assert all(70 <= x <= 630 and 40 <= y <= 300 for x, y in points)
    # The second model is the reference itself: its curve lies on the axis.
    assert {p.split(",")[1] for p in curves[1].attrib["points"].split()} == {"300.0"}
    texts = [element.text for element in root.findall(f"{space}text")]
    assert {"21", str(window - 1), Path(model).name, Path(base).name} <= set(texts)


def test_limits_and_examples_reach_the_tasks(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mmlu = tmp_path / "a_test.csv"
    mmlu.write_text("Q,1,2,3,4,A\nR,1,2,3,4,B\nS,1,2,3,4,C\n")
    arguments = ["--mmlu", str(mmlu), "--mmlu-shots", str(mmlu), "--shots", "1", "--limit", "2"]
    assert main(["eval", model, *arguments]) == 0
    assert re.search(r"mmlu acc +[\d.]+ ± [\d.]+ %  \(2 questions, 1 shots\)",
                     capsys.readouterr().out)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "expected --perplexity, --text or a task, found nothing to measure"),
        (["--perplexity", "TEXT", "--text", "a"], 2, "one of --perplexity and --text"),
        (["--perplexity", "none.txt"], 1, "none.txt: No such file"),
        (["--perplexity", "BYTES"], 1, "expected UTF-8 text, found byte 0xff at 3"),
        (["--text", "the cat", "--window", "64"], 2, "text: expected 64 tokens or more"),
        (["--text", "the cat", "--window", "65", "-c", "64"], 2, "window: expected an integer"),
        (["--text", "the cat", "--window", "x"], 2, "'x' is not a valid integer"),
        (["--text", "the cat", "--picture", "a.svg"], 2, "--picture: expected --kl-against too"),
        (["--arc", "ARC", "--kl-against", "BASE"], 2, "--kl-against: expected --perplexity or"),
        (["--arc", "none.jsonl"], 1, "none.jsonl: No such file"),
        (["--arc", "TEXT"], 1, "text.txt: line 1: expected a JSON object"),
        (["--arc", "ARC", "--limit", "0"], 2, "limit: expected an integer from 1"),
        (["--arc", "ARC", "--gsm8k-shots", "ARC"], 2, "--gsm8k-shots: expected --gsm8k too"),
        (["--arc", "ARC", "-c", "8"], 1, "arc.jsonl: line 1: expected a question of 8 tokens"),
        (["--text", "a", "--kl-against", "none.gguf"], 1, "none.gguf: cannot open"),
        (["--text", TEXT, "--window", "9", "--compare", "SPM"], 2, "expected the vocabulary of"),
        (["--text", TEXT, "--window", "9", "--json", "no/a.json"], 1, "no/a.json: No such file"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    arguments: list[str],
    code: int,
    message: str,
    text: str,
    arc: str,
    model: str,
    base: str,
    make_model: Maker,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"abc\xff")
    names = {
        "TEXT": text,
        "ARC": arc,
        "BASE": base,
        "BYTES": str(tmp_path / "bytes.txt"),
        "SPM": str(make_model(Shape(vocabulary="spm"))),
    }
    assert main(["eval", model, *(names.get(word, word) for word in arguments)]) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_pipe_gets_figures_and_nothing_else(model: str) -> None:
    code, out, err = run("eval", model, "--text", TEXT, "--window", "40")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == model
    assert out.count("\n") == 2


def test_a_terminal_shows_how_far_it_is(model: str) -> None:
    code, shown = on_terminal("eval", model, "--text", TEXT, "--window", "40")
    assert code == 0
    assert re.search(r"\rtext +\[#{24}\] (\d+)/\1, [\d.]+ tok/s, 0:00 left", shown)
    assert "\rtext" not in on_terminal("eval", model, "--text", TEXT, "--window", "40", "-q")[1]


def test_ctrl_c_shows_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("Once upon a time there was a dog. " * 20_000)
    code, shown = on_terminal(
        "eval", "--perplexity", str(path), "--window", "64", interrupt_after=b"left"
    )
    assert code == 130
    assert re.search(r"perplexity +[\d.]+ ± [\d.]+", shown)
    assert "interrupted: the figures are of what was measured until then" in shown
    assert "Traceback" not in shown
