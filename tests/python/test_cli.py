"""The command line as its user meets it: in a process of its own, in a pipe and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pyengine

PYENGINE = [sys.executable, "-m", "pyengine"]


def run(*args: str, stdin: bytes = b"", cwd: Path | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    done = subprocess.run([*PYENGINE, *args], input=stdin, capture_output=True, cwd=cwd, timeout=60)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def generate(prompt: str, **options: object) -> str:
    with pyengine.Engine() as engine:
        return engine.generate(prompt, **options).text  # type: ignore[call-overload,no-any-return]


# ---- run ----


def test_run_continues_the_prompt_with_the_bundled_model() -> None:
    code, out, err = run("run", "-p", "Once upon a time", "--temp", "0", "-n", "12")
    assert code == 0
    assert out == generate("Once upon a time", temperature=0, max_tokens=12) + "\n"
    assert re.search(
        r"load [\d.]+ s \| prefill 4 tokens, [\d.]+ tok/s \| decode 11 tokens, [\d.]+ tok/s"
        r" \| peak memory [\d.]+ MB \| seed \d+ \| ended by length",
        err,
    )


def test_the_seed_in_the_summary_gives_the_same_text_again() -> None:
    _, first, err = run("run", "-p", "The old", "-n", "20")
    seed = re.search(r"seed (\d+)", err)
    assert seed is not None
    assert run("run", "-p", "The old", "-n", "20", "--seed", seed[1])[1] == first


def test_prompt_comes_from_an_option_a_file_or_a_pipe(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("A dog")
    rest = ["-n", "8", "--temp", "0"]
    expected = run("run", "-p", "A dog", *rest)[1]
    assert run("run", "-f", str(prompt), *rest)[1] == expected
    assert run("run", *rest, stdin=b"A dog")[1] == expected


def test_model_is_an_argument_or_the_option_of_habit() -> None:
    path = str(pyengine.bundled_model())
    rest = ["-p", "A", "-n", "4", "--temp", "0"]
    assert run("run", path, *rest)[1] == run("run", "-m", path, *rest)[1] == run("run", *rest)[1]


def test_no_prompt_at_all_begins_a_new_text() -> None:
    code, out, _ = run("run", "-n", "8", "--seed", "1")
    assert code == 0
    assert out.strip()


def test_flags_of_habit_reach_the_engine() -> None:
    code, out, err = run(
        "run", "-p", "Once", "-n", "30", "-c", "64", "-t", "1", "-b", "16", "--temp", "0.7",
        "--top-k", "10", "--top-p", "0.9", "--min-p", "0.1", "--repeat-penalty", "1.1",
        "--presence-penalty", "0.1", "--frequency-penalty", "0.1", "--repeat-last-n", "32",
        "--seed", "5", "--ignore-eos", "-v",
    )  # fmt: skip
    assert code == 0
    assert "1 threads, batches of 16, context 64 of 2048" in err
    expected = generate(
        "Once", max_tokens=30, temperature=0.7, top_k=10, top_p=0.9, min_p=0.1,
        repeat_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1, penalty_window=32,
        seed=5, ignore_eos=True,
    )  # fmt: skip
    assert out == expected + "\n"


def test_stop_strings_end_the_text_and_stay_out_of_it() -> None:
    for flag in ("--stop", "-r", "--reverse-prompt"):
        _, out, err = run("run", "-p", "Once upon a time", "--temp", "0", flag, "named")
        assert "named" not in out
        assert "ended by stop" in err


def test_escapes_are_read_only_on_request() -> None:
    newline = run("run", "-p", "One.\nTwo", "-n", "6", "--temp", "0")[1]
    assert run("run", "-e", "-p", r"One.\nTwo", "-n", "6", "--temp", "0")[1] == newline
    literal = generate(r"One.\nTwo", max_tokens=6, temperature=0)
    assert run("run", "-p", r"One.\nTwo", "-n", "6", "--temp", "0")[1] == literal + "\n"


def test_quiet_says_nothing_beside_the_text() -> None:
    assert run("run", "-p", "Once", "-n", "3", "--quiet")[2] == ""


def test_verbose_names_what_runs() -> None:
    err = run("run", "-p", "Once", "-n", "1", "-v", "--isa", "scalar")[2]
    assert "weights interleaved in memory: off: rows of these types are read as fast" in err
    assert "llama, 8 layers" in err
    assert "kernels scalar" in err


# ---- what goes wrong ----


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "missing.gguf"], 1, "missing.gguf: cannot open: No such file or directory"),
        (["run", "."], 1, ".: expected a file, found a directory"),
        (["run", "-f", "missing.txt"], 1, "missing.txt: No such file or directory"),
        (["run", "-p", "a", "-f", "b"], 2, "expected one of -p and -f, found both"),
        (["run", "-p", "a", "--top-p", "2"], 2, "top_p: expected above 0 and up to 1, found 2"),
        (["run", "-p", "a", "--temp", "-1"], 2, "temperature: expected 0 or more, found -1"),
        (["run", "-p", "a", "-t", "0"], 2, "n_threads: expected an integer from 1"),
        (["run", "-p", "a", "-c", "0"], 2, "n_ctx: expected an integer from 1"),
        (["run", "-p", "a", "-c", "4096"], 2, "n_ctx: expected at most 2048"),
        (["run", "-p", "a", "-n", "-2"], 2, "--max-tokens: expected -1 or more, found -2"),
        (["run", "-p", "a", "-n", "many"], 2, "'many' is not a valid integer"),
        (["run", "-p", "one two three", "-c", "2"], 1, "prompt: expected at most 2 tokens"),
        (["run", "--unknown"], 2, "No such option"),
        (["fly"], 2, "No such command 'fly'"),
        (["inspect", "missing.gguf"], 1, "missing.gguf: cannot open"),
        (["convert", "missing"], 1, "missing"),
        (["convert", "--type", "q9"], 2, "q9"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    arguments: list[str], code: int, message: str, tmp_path: Path
) -> None:
    found, out, err = run(*arguments, cwd=tmp_path)
    assert (found, out) == (code, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    damaged = tmp_path / "cut.gguf"
    damaged.write_bytes(pyengine.bundled_model().read_bytes()[:1_000_000])
    code, _, err = run("run", str(damaged))
    assert code == 1
    assert re.fullmatch(r"error: .*cut\.gguf: .* is it cut short\?\n", err)


def test_standard_input_must_be_text() -> None:
    code, out, err = run("run", stdin=b"abc\xff")
    assert (code, out) == (1, "")
    assert err == "error: standard input: expected UTF-8 text, found byte 0xff at 3\n"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = " ".join([*PYENGINE, "run", "-p", "Once", "-n", "200", "--quiet"])
    done = subprocess.run(
        f"{command} | head -c 10", shell=True, capture_output=True, timeout=60, text=True
    )
    assert len(done.stdout) == 10
    assert done.stderr == ""


def test_closed_streams_are_named_or_done_without() -> None:
    def shell(redirection: str) -> tuple[int, str]:
        command = " ".join([*PYENGINE, "run", "-p", "Once", "-n", "2"])
        done = subprocess.run(
            f"{command} {redirection}", shell=True, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stderr

    code, err = shell(">&-")
    assert (code, err) == (1, "error: standard output: expected it open, found it closed\n")
    assert shell("2>&-") == (0, "")


def test_characters_that_the_output_lacks_are_replaced() -> None:
    done = subprocess.run(
        [*PYENGINE, "inspect", "--all"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stderr == b""


def on_terminal(*args: str, interrupt_after: bytes | None = None) -> tuple[int, str]:
    """Exit code and all that a terminal shows; Ctrl-C once something has appeared."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*PYENGINE, *args])
    shown = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            data = os.read(terminal, 4096)
        except OSError:  # Linux says so when the other side has closed
            break
        if not data:
            break
        shown += data
        if interrupt_after is not None and interrupt_after in shown:
            os.kill(pid, signal.SIGINT)
            interrupt_after = None
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    return code, shown.decode(errors="replace")


def test_a_terminal_shows_the_prompt_too() -> None:
    code, shown = on_terminal("run", "-p", "Once upon", "-n", "5", "--temp", "0")
    assert code == 0
    assert "Once upon" in shown
    assert generate("Once upon", max_tokens=5, temperature=0) in shown


def test_ctrl_c_ends_the_text_and_still_sums_up() -> None:
    code, shown = on_terminal(
        "run", "-p", "Once upon a time", "--ignore-eos", "--seed", "1", interrupt_after=b"time"
    )
    assert code == 130
    assert "ended by cancelled" in shown
    assert "Traceback" not in shown


# ---- inspect, convert, version ----


def test_inspect_tells_what_the_file_holds() -> None:
    code, out, _ = run("inspect")
    assert code == 0
    for fact in (
        "runs here: yes",
        "architecture llama",
        "Q4_0",
        "token_embd.weight",
        "and 62 more",
    ):
        assert fact in out
    assert "blk.7.ffn_down.weight" not in out
    assert "blk.7.ffn_down.weight" in run("inspect", "--all")[1]


def test_inspect_json_is_for_programs() -> None:
    document = json.loads(run("inspect", "--json")[1])
    assert document["supported"] is True
    assert document["architecture"] == "llama"
    assert document["weights"] == 29_368_832
    assert document["metadata"]["tokenizer.ggml.tokens"]["length"] == 8192
    assert len(document["tensors"]) == 74
    with pyengine.Engine() as engine:
        assert document["bytes_per_token"] == engine.info.decode_bytes


def test_convert_is_the_converters_door() -> None:
    code, out, _ = run("convert", "--help")
    assert code == 0
    assert out.startswith("Usage: pyengine convert")
    assert "--type" in out


def test_version() -> None:
    assert run("--version")[1] == f"pyengine, version {pyengine.__version__}\n"


def test_help_lists_the_commands() -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert {"run", "inspect", "convert"} <= set(re.findall(r"^  (\w+)", out, re.MULTILINE))
