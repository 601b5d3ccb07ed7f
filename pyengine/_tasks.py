"""Files of questions, as data sets are distributed, and the prompts made of them.

Prompts are those of lm-evaluation-harness, so accuracies compare.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyengine._arguments import choice, integer
from pyengine._errors import ArgumentError, TaskFileError

_LETTERS = "ABCD"
# How GSM8K writes the number behind a worked solution.
_RESULT = "#### "


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        place: File and line that it stands on.
        group: Questions of one group begin alike: MMLU's subject.
        prompt: Everything before the answer.
        endings: What the model chooses from, without the space before it; none of a question
            that it answers freely.
        gold: Index of the right ending, or the right answer's text.
    """

    place: str
    group: str
    prompt: str
    endings: tuple[str, ...]
    gold: int | str


@dataclass(frozen=True, slots=True)
class Task:
    """A data set to be answered; see :meth:`read`.

    Attributes:
        name: ``"hellaswag"``, ``"arc"``, ``"mmlu"`` or ``"gsm8k"``.
        questions: In the file's order.
        n_shots: Solved examples before each question.
    """

    name: str
    questions: tuple[Question, ...]
    n_shots: int

    @classmethod
    def read(
        cls,
        name: str,
        path: str | os.PathLike[str],
        *,
        shots: str | os.PathLike[str] | None = None,
        n_shots: int = 5,
        limit: int | None = None,
    ) -> Task:
        """Reads a task's file; docs/EVALUATION.md lists the fields of each.

        Args:
            name: ``"hellaswag"``, ``"arc"``, ``"mmlu"`` or ``"gsm8k"``.
            path: JSON lines; for MMLU also CSV, or a folder of CSV files.
            shots: Where solved examples come from, of MMLU and GSM8K: a file or folder of the
                same form. None: no examples.
            n_shots: The first so many of them, of the question's subject, come first.
            limit: Only the first so many questions, of each subject.

        Raises:
            TaskFileError: A file cannot be read, holds no question, or a field is missing or
                not as expected; names file and line.
            ArgumentError: An option outside its range.
        """
        reader: _Reader = choice("task", name, _READERS)
        n_shots = integer("n_shots", n_shots, 0, 1000)
        if limit is not None:
            limit = integer("limit", limit, 1, 2**31)
        if shots is None:
            n_shots = 0
        elif reader.solved is None:
            raise ArgumentError(f"shots: expected none for {name}, found {os.fspath(shots)!r}")
        heads: dict[str, str] = {}
        if shots is not None and reader.solved is not None:
            heads = _solved(Path(shots), reader, n_shots)
        questions: list[Question] = []
        count: dict[str, int] = {}
        for record in _records(Path(path)):
            question = reader.question(record)
            seen = count.get(question.group, 0)
            if limit is not None and seen >= limit:
                continue
            count[question.group] = seen + 1
            head = reader.head(question.group)
            if n_shots:
                if question.group not in heads:
                    raise TaskFileError(
                        f"{os.fspath(shots or '')}: expected examples of "
                        f"{question.group or 'the task'}, which {record.place} needs, found none"
                    )
                head += heads[question.group]
            questions.append(
                Question(
                    record.place,
                    question.group,
                    head + question.prompt,
                    question.endings,
                    question.gold,
                )
            )
        if not questions:
            raise TaskFileError(f"{os.fspath(path)}: expected at least one question, found none")
        return cls(name, tuple(questions), n_shots)


@dataclass(frozen=True, slots=True)
class _Record:
    """One line's fields, with the checks that name the line."""

    place: str
    fields: Mapping[str, Any]

    def wrong(self, expected: str, found: Any) -> TaskFileError:
        return TaskFileError(f"{self.place}: expected {expected}, found {found!r:.80}")

    def get(self, name: str) -> Any:
        if name not in self.fields:
            there = ", ".join(self.fields) or "none"
            raise TaskFileError(f"{self.place}: expected the field {name!r}, found {there:.160}")
        return self.fields[name]

    def text(self, name: str) -> str:
        value = self.get(name)
        if not _is_text(value):
            raise self.wrong(f"a text as {name!r}", value)
        return str(value)

    def texts(self, name: str) -> tuple[str, ...]:
        return self.checked_texts(name, self.get(name))

    def checked_texts(self, name: str, value: Any) -> tuple[str, ...]:
        if not (
            isinstance(value, list)
            and len(value) > 1
            and all(_is_text(item) and item for item in value)
        ):
            raise self.wrong(f"two texts or more as {name!r}, none empty", value)
        return tuple(value)

    def index(self, name: str, n: int) -> int:
        """A choice's index; files write it as a number or as its digits."""
        value = self.get(name)
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n:
            raise self.wrong(f"an index from 0 to {n - 1} as {name!r}", value)
        return value


def _is_text(value: Any) -> bool:
    """Whether it is a str without lone surrogates, which JSON can spell but nobody encode."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Reader:
    """How one data set becomes prompts.

    Attributes:
        question: A question without what comes before it.
        head: What comes before all questions of a group.
        solved: What follows a solved question's prompt; None where no examples are given.
    """

    question: Callable[[_Record], Question]
    head: Callable[[str], str] = lambda group: ""
    solved: Callable[[Question], str] | None = None


def _solved(path: Path, reader: _Reader, n_shots: int) -> dict[str, str]:
    """The text of the first n_shots solved examples of each group."""
    texts: dict[str, list[str]] = {}
    for record in _records(path):
        question = reader.question(record)
        group = texts.setdefault(question.group, [])
        if len(group) < n_shots and reader.solved is not None:
            group.append(f"{question.prompt} {reader.solved(question)}\n\n")
    for name, found in texts.items():
        if len(found) < n_shots:
            of = f" of {name}" if name else ""
            raise TaskFileError(f"{path}: expected {n_shots} examples{of}, found {len(found)}")
    return {name: "".join(found) for name, found in texts.items()}


# ---- data sets ----


def _hellaswag(record: _Record) -> Question:
    if "query" in record.fields:  # already joined and cleaned, as benchmarks pass it on
        prompt, endings = record.text("query"), record.texts("choices")
        return Question(record.place, "", prompt, endings, record.index("gold", len(endings)))
    context = f"{record.text('ctx_a')} {record.text('ctx_b').capitalize()}"
    prompt = _plain(f"{record.text('activity_label')}: {context}")
    endings = record.checked_texts("endings", [_plain(text) for text in record.texts("endings")])
    return Question(record.place, "", prompt, endings, record.index("label", len(endings)))


def _plain(text: str) -> str:
    """Without the marks that WikiHow's part of HellaSwag has kept."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _arc(record: _Record) -> Question:
    choices = record.get("choices")
    if not isinstance(choices, dict) or not {"text", "label"} <= choices.keys():
        raise record.wrong("lists 'text' and 'label' in 'choices'", choices)
    endings = record.checked_texts("text", choices["text"])
    labels = record.checked_texts("label", choices["label"])
    key = record.text("answerKey")
    if key not in labels or len(labels) != len(endings):
        raise record.wrong(f"one label of each choice, {key!r} among them", labels)
    prompt = f"Question: {record.text('question')}\nAnswer:"
    return Question(record.place, "", prompt, endings, labels.index(key))


def _mmlu(record: _Record) -> Question:
    choices = record.get("choices")
    if not (
        isinstance(choices, list)
        and len(choices) == len(_LETTERS)
        and all(_is_text(text) for text in choices)
    ):
        raise record.wrong("4 texts as 'choices'", choices)
    answer = record.get("answer")
    if isinstance(answer, str) and len(answer) == 1 and answer in _LETTERS:
        gold = _LETTERS.index(answer)
    else:
        gold = record.index("answer", len(_LETTERS))
    lines = [record.text("question").strip()]
    lines += [f"{letter}. {text}" for letter, text in zip(_LETTERS, choices, strict=True)]
    prompt = "\n".join([*lines, "Answer:"])
    return Question(record.place, record.text("subject"), prompt, tuple(_LETTERS), gold)


def _mmlu_head(subject: str) -> str:
    about = subject.replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {about}.\n\n"


def _gsm8k(record: _Record) -> Question:
    answer = record.text("answer")
    if _RESULT not in answer:
        raise record.wrong(f"an answer that ends in {_RESULT.strip()!r} and a number", answer)
    return Question(record.place, "", f"Question: {record.text('question')}\nAnswer:", (), answer)


_READERS = {
    "hellaswag": _Reader(_hellaswag),
    "arc": _Reader(_arc),
    "mmlu": _Reader(_mmlu, _mmlu_head, lambda question: _LETTERS[int(question.gold)]),
    "gsm8k": _Reader(_gsm8k, solved=lambda question: str(question.gold)),
}


# ---- files ----


def _records(path: Path) -> Iterator[_Record]:
    """The lines of a file, or of a folder's CSV files in the order of their names."""
    if path.is_dir():
        files = sorted(path.glob("*.csv"))
        if not files:
            raise TaskFileError(f"{path}: expected CSV files in the folder, found none")
        for file in files:
            yield from _csv_records(file)
    elif path.suffix == ".csv":
        yield from _csv_records(path)
    else:
        yield from _json_records(path)


def _json_records(path: Path) -> Iterator[_Record]:
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}: line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TaskFileError(f"{place}: expected a JSON object, found {error}") from None
        if not isinstance(fields, dict):
            raise TaskFileError(f"{place}: expected a JSON object, found {type(fields).__name__}")
        yield _Record(place, fields)


def _csv_records(path: Path) -> Iterator[_Record]:
    """MMLU's original form: question, four choices, the answer's letter; no heading."""
    subject = re.sub(r"_(?:test|val|dev)$", "", path.stem)
    reader = csv.reader(io.StringIO(_read(path), newline=""), strict=True)
    while True:
        place = f"{path}: line {reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise TaskFileError(
                f"{place}: expected comma-separated values, found {error}"
            ) from None
        if row is None:
            return
        if not row or (reader.line_num == 1 and row[-1].strip().lower() == "answer"):
            continue
        if len(row) != 6:
            raise TaskFileError(
                f"{place}: expected question, 4 choices and answer, found {len(row)} columns"
            )
        yield _Record(
            place,
            {"question": row[0], "choices": row[1:5], "answer": row[5], "subject": subject},
        )


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskFileError(f"{path}: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskFileError(
            f"{path}: expected UTF-8 text, found byte 0x{data[error.start]:02x} at {error.start}"
        ) from None
