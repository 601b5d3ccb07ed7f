"""`pyengine chat` as its user meets it: in a pipe and on a terminal."""

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
from tiny import Shape, chain, random_model

import pyengine

PYENGINE = [sys.executable, "-m", "pyengine"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with random weights and a template."""
    model = random_model(Shape(context=1024))
    model.metadata["tokenizer.chat_template"] = CHATML
    return str(model.save(tmp_path_factory.mktemp("chat") / "talker.gguf"))


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that thinks, answers and calls a tool, always the same."""
    call = b'<tool_call>{"name": "f", "arguments": {"a": "\xc3\xa9"}}</tool_call>'
    model = chain([b"<think>", b"why", b"</think>", b"Yes", b".", call])
    model.metadata["tokenizer.chat_template"] = "{{ bos_token }}"
    return str(model.save(tmp_path_factory.mktemp("chat") / "thinker.gguf"))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A template with which the bundled model goes on and on."""
    path = tmp_path_factory.mktemp("chat") / "story.jinja"
    path.write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    return str(path)


def chat(*args: str, stdin: str = "", cwd: Path | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    done = subprocess.run(
        [*PYENGINE, "chat", *args], input=stdin.encode(), capture_output=True, cwd=cwd, timeout=60
    )
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode()


# ---- in a pipe ----


def test_each_line_of_a_pipe_is_a_turn(talker: str) -> None:
    code, out, err = chat(talker, "--temp", "0", "-n", "6", "-r", "\n", stdin="one\n\ntwo\n")
    assert (code, err) == (0, "")
    with pyengine.Engine(talker) as engine:
        messages: list[dict[str, object]] = []
        answers = []
        for text in ("one", "two"):
            messages.append({"role": "user", "content": text})
            reply = engine.chat(messages, temperature=0, max_tokens=6, stop="\n")
            messages.append(reply.message)
            answers.append(reply.text)
    assert out == "".join(answer + "\n" for answer in answers)


def test_reasoning_is_hidden_in_a_pipe_unless_asked_for(thinker: str) -> None:
    said = 'Yes.\n[f {"a": "\u00e9"}]\n'
    assert chat(thinker, stdin="x\n") == (0, said, "")
    assert chat(thinker, "--reasoning", "show", stdin="x\n") == (0, "why\n\n" + said, "")


def test_turns_compute_only_what_is_new(talker: str) -> None:
    lines = "a long first message, with many words\nshort\n"
    err = chat(talker, "-v", "--temp", "0", "-n", "3", stdin=lines)[2]
    first, second = (int(n) for n in re.findall(r"prefill (\d+) tokens", err))
    with pyengine.Engine(talker) as engine:
        whole = len(engine.tokenize(f"<|im_start|>user\n{lines}<|im_end|>\n"))
    assert first > 60
    assert second < first < whole + second


def test_a_backslash_joins_lines(talker: str, tmp_path: Path) -> None:
    chat(talker, "-n", "1", stdin="one\\\ntwo\n/save a.json\n", cwd=tmp_path)
    messages = json.loads((tmp_path / "a.json").read_text())
    assert messages[0] == {"role": "user", "content": "one\ntwo"}


def test_save_load_and_reset(talker: str, tmp_path: Path) -> None:
    stdin = "one\n/save a.json\n/reset\n/save b.json\n/load a.json\ntwo\n/save c.json\n/exit\nno\n"
    code, _, err = chat(talker, "--system", "S", "-n", "2", stdin=stdin, cwd=tmp_path)
    assert (code, err) == (0, "")
    a, b, c = (json.loads((tmp_path / f"{n}.json").read_text()) for n in "abc")
    assert [m["role"] for m in a] == ["system", "user", "assistant"]
    assert b == [{"role": "system", "content": "S"}]
    assert c[:3] == a
    assert [m["role"] for m in c] == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/fly", "/fly: expected a command that /help lists"),
        ("/save", "/save: expected a file, found none"),
        ("/save no/where.json", "no/where.json: No such file or directory"),
        ("/load missing.json", "missing.json: No such file or directory"),
        ("/load bad.json", "bad.json: expected JSON, found: "),
        ("/load list.json", "list.json: messages[0]: expected a mapping"),
        ("/load .", ".: Is a directory"),
        ("/load binary.json", "binary.json: expected JSON, found: 'utf-8' codec"),
    ],
)
def test_a_wrong_command_is_told_and_the_chat_goes_on(
    talker: str, tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "bad.json").write_text("[")
    (tmp_path / "list.json").write_text("[3]")
    (tmp_path / "binary.json").write_bytes(b"\xff")
    code, out, err = chat(talker, "-n", "1", stdin=f"{line}\nhello\n", cwd=tmp_path)
    assert code == 1
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert out.count("\n") >= 1


def test_a_path_is_no_command(talker: str) -> None:
    assert chat(talker, "-n", "1", stdin="/usr/bin is a folder\n")[2] == ""


def test_a_full_context_is_told_and_reset_helps(talker: str) -> None:
    stdin = "word " * 80 + "\n/reset\nhi\n"
    code, out, err = chat(talker, "-c", "128", "-n", "2", stdin=stdin)
    assert code == 1
    assert err.startswith("error: context full: prompt: expected at most 128 tokens")
    assert "/reset begins a new conversation" in err
    assert err.count("\n") == 1 and out
    code, _, err = chat(talker, "-c", "96", "--seed", "1", stdin="hi there\n")
    assert "the answer is cut short" in err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 1, "found none; pass one with template=, on the command line with --chat-template"),
        (["--chat-template", "missing"], 1, "missing: No such file or directory"),
        (["-n", "-3"], 2, "--max-tokens: expected -1 or more, found -3"),
        (["missing.gguf"], 1, "missing.gguf: cannot open"),
        (["--reasoning", "maybe"], 2, "'maybe' is not one of 'show', 'hide'"),
    ],
)
def test_an_error_before_the_first_turn_ends(args: list[str], code: int, message: str) -> None:
    found, out, err = chat(*args, stdin="hi\n")
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert message in err and err.count("\n") == 1


def test_a_broken_template_is_told_at_each_turn(talker: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jinja"
    broken.write_text("\n{{ 1 / 0 }}")
    code, out, err = chat(talker, "--chat-template", str(broken), stdin="a\nb\n")
    assert (code, out) == (1, "")
    assert err.count("error: chat template (given), line 2: ZeroDivisionError") == 2


def test_input_must_be_text(talker: str) -> None:
    done = subprocess.run(
        [*PYENGINE, "chat", talker], input=b"\xff\n", capture_output=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == b"error: standard input: expected UTF-8 text, found byte 0xff\n"


# ---- on a terminal ----


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *args: str) -> None:
        self.shown = b""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(sys.executable, [*PYENGINE, "chat", *args])

    def read(self) -> bool:
        """Takes what there is within a second; False at the end."""
        if select.select([self._terminal], [], [], 1)[0]:
            try:
                data = os.read(self._terminal, 4096)
            except OSError:  # Linux says so when the other side has closed
                return False
            self.shown += data
            return bool(data)
        return True

    def expect(self, pattern: bytes) -> bytes:
        """Waits for a pattern and gives what stood before it."""
        deadline = time.monotonic() + 60
        while not (match := re.search(pattern, self.shown)):
            assert time.monotonic() < deadline and self.read(), (pattern, self.shown)
        before, self.shown = self.shown[: match.start()], self.shown[match.end() :]
        return before

    def send(self, data: bytes) -> None:
        os.write(self._terminal, data)

    def press(self, key: bytes, pattern: bytes | None) -> None:
        """Presses a key until a pattern appears, or with None until the program has ended.

        A Ctrl-C between an echo and the wait for input is only seen with the next one.
        """
        deadline = time.monotonic() + 60
        self.send(key)
        while pattern is None or not re.search(pattern, self.shown):
            seen = len(self.shown)
            assert time.monotonic() < deadline, (pattern, self.shown)
            if not self.read():
                assert pattern is None, (pattern, self.shown)
                return
            if len(self.shown) == seen:
                self.send(key)
        self.expect(pattern)

    def end(self) -> tuple[int, bytes]:
        """Exit code, and what was shown last."""
        deadline = time.monotonic() + 60
        while self.read():
            assert time.monotonic() < deadline, self.shown
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), self.shown


def test_a_terminal_shows_reasoning_dimmed(thinker: str) -> None:
    terminal = Terminal(thinker)
    terminal.expect(rb"> ")
    terminal.send(b"hello\r")
    shown = terminal.expect(rb"\[f ")
    assert b"\x1b[2mwhy\x1b[0m" in shown
    assert b"Yes." in shown
    terminal.expect(rb"> ")
    terminal.send(b"\x04")
    code, shown = terminal.end()
    assert code == 0
    assert b"Traceback" not in shown


def test_ctrl_c_stops_the_answer_and_then_the_program(story: str) -> None:
    terminal = Terminal("--chat-template", story, "--seed", "1", "-v")
    terminal.expect(rb"> ")
    terminal.send(b"Once upon a time\r")
    terminal.expect(rb"time[^\n]*\n[^\n]*\w+ \w+ \w+")
    os.kill(terminal.pid, signal.SIGINT)
    terminal.expect(rb"ended by cancelled")
    terminal.expect(rb"> ")
    terminal.send(b"half a line")
    terminal.expect(rb"a line")
    terminal.press(b"\x03", rb"> ")  # clears it
    terminal.send(b"/help\r")
    terminal.expect(rb"/save FILE")
    terminal.expect(rb"> ")
    terminal.press(b"\x03", None)
    code, shown = terminal.end()
    assert code == 0
    assert b"Traceback" not in shown


def test_a_paste_and_the_history(talker: str, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    terminal = Terminal(talker, "-n", "1")
    terminal.expect(rb"> ")
    terminal.send(b"\x1b[200~one\ntwo\x1b[201~\r")
    terminal.expect(rb"> ")
    terminal.send(b"a\\\r")
    terminal.expect(rb"\.\.\. ")
    terminal.send(b"b\r")
    terminal.expect(rb"> ")
    terminal.send(b"\x1b[A\x1b[A\x01x\r")  # two lines up, to its start, x
    terminal.expect(rb"\.\.\. ")
    terminal.send(b"y\r")
    terminal.expect(rb"> ")
    terminal.send(f"/save {saved}\r/exit\r".encode())
    assert terminal.end()[0] == 0
    said = [m["content"] for m in json.loads(saved.read_text()) if m["role"] == "user"]
    assert said == ["one\ntwo", "a\nb", "xa\ny"]
