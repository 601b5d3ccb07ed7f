"""Files of questions: the prompts made of them, and what is wrong in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyengine import ArgumentError, Task, TaskFileError

HELLASWAG = {
    "ind": 1,
    "activity_label": "Washing [step] hands",
    "ctx_a": "A man [title] stands.",
    "ctx_b": "he Turns",
    "ctx": "unused",
    "endings": ["on the  water.", "[x]away.", "off.", "red."],
    "label": "2",
}
ARC = {
    "id": "a",
    "question": "What is wet?",
    "choices": {"text": ["fire", "water", "sand"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}
MMLU = {
    "question": " What is 1 + 1? ",
    "subject": "abstract_algebra",
    "choices": ["1", "2", "3", "4"],
    "answer": 1,
}
GSM8K = {"question": "Two and two?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}


def lines(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", "utf-8")
    return path


def test_hellaswag_joins_and_cleans_its_fields(tmp_path: Path) -> None:
    (question,) = Task.read("hellaswag", lines(tmp_path / "h.jsonl", HELLASWAG)).questions
    assert question.prompt == "Washing hands: A man. stands. He turns"
    assert question.endings == ("on the water.", "away.", "off.", "red.")
    assert question.gold == 2


def test_hellaswag_that_is_already_joined(tmp_path: Path) -> None:
    record = {"query": "Tango:  They", "choices": ["a. ", "b"], "gold": 1}
    (question,) = Task.read("hellaswag", lines(tmp_path / "h.jsonl", record)).questions
    # Cleaned twice, a text that ended in a mark would lose the space before it too.
    assert (question.prompt, question.endings) == ("Tango:  They", ("a. ", "b"))
    assert question.gold == 1


def test_arc_prompt_and_key(tmp_path: Path) -> None:
    (question,) = Task.read("arc", lines(tmp_path / "a.jsonl", ARC)).questions
    assert question.prompt == "Question: What is wet?\nAnswer:"
    assert (question.endings, question.gold) == (("fire", "water", "sand"), 1)


def test_mmlu_prompt_with_and_without_examples(tmp_path: Path) -> None:
    path = lines(tmp_path / "m.jsonl", MMLU)
    head = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    asked = "What is 1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    (question,) = Task.read("mmlu", path).questions
    assert question.prompt == head + asked
    assert (question.endings, question.gold) == (("A", "B", "C", "D"), 1)
    others = [{**MMLU, "question": f"Q{i}", "answer": i, "subject": s} for i in range(3)
              for s in ("abstract_algebra", "anatomy")]  # fmt: skip
    task = Task.read("mmlu", path, shots=lines(tmp_path / "dev.jsonl", *others), n_shots=2)
    example = "Q{}\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: {}\n\n"
    expected = head + example.format(0, "A") + example.format(1, "B") + asked
    assert (task.questions[0].prompt, task.n_shots) == (expected, 2)


def test_mmlu_from_a_folder_of_csv_files(tmp_path: Path) -> None:
    test, dev = tmp_path / "test", tmp_path / "dev"
    test.mkdir()
    dev.mkdir()
    (test / "b_test.csv").write_text('"Why, ""x""?",p,q,r,s,D\n')
    (test / "a_b_test.csv").write_text("What?,1,2,3,4,A\nWho?,1,2,,4,B\nHow?,1,2,3,4,C\n")
    (dev / "b_dev.csv").write_text("Z?,1,2,3,4,C\n")
    (dev / "a_b_dev.csv").write_text("Y?,1,2,3,4,C\n")
    task = Task.read("mmlu", test, shots=dev, n_shots=1, limit=2)
    assert [question.group for question in task.questions] == ["a_b", "a_b", "b"]
    assert [question.gold for question in task.questions] == [0, 1, 3]
    assert "about a b.\n\nY?\nA. 1" in task.questions[0].prompt
    assert task.questions[2].prompt.endswith('Why, "x"?\nA. p\nB. q\nC. r\nD. s\nAnswer:')


def test_gsm8k_examples_show_their_solutions(tmp_path: Path) -> None:
    path = lines(tmp_path / "g.jsonl", GSM8K)
    task = Task.read("gsm8k", path, shots=path, n_shots=1)
    asked = "Question: Two and two?\nAnswer:"
    assert task.questions[0].prompt == f"{asked} {GSM8K['answer']}\n\n{asked}"
    assert (task.questions[0].endings, task.questions[0].gold) == ((), GSM8K["answer"])
    assert Task.read("gsm8k", path).n_shots == 0


def test_blank_lines_and_a_byte_order_mark_are_no_questions(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\ufeff\n" + json.dumps(ARC) + "\n\n", "utf-8")
    (question,) = Task.read("arc", path).questions
    assert question.place == f"{path}: line 2"


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("hellaswag", without(HELLASWAG, "ctx_b"), "expected the field 'ctx_b', found ind, act"),
        ("hellaswag", {**HELLASWAG, "label": 4}, "an index from 0 to 3 as 'label', found 4"),
        ("hellaswag", {**HELLASWAG, "label": ""}, "an index from 0 to 3 as 'label', found ''"),
        ("hellaswag", {**HELLASWAG, "endings": "ab"}, "two texts or more as 'endings'"),
        ("hellaswag", {**HELLASWAG, "endings": ["[x]", "b"]}, "none empty, found ['', 'b']"),
        ("hellaswag", {**HELLASWAG, "ctx_a": 1}, "a text as 'ctx_a', found 1"),
        ("gsm8k", {**GSM8K, "question": "\ud800"}, "a text as 'question', found '\\ud800'"),
        ("mmlu", {**MMLU, "choices": ["\udc00"] * 4}, "4 texts as 'choices'"),
        ("arc", without(ARC, "question"), "expected the field 'question'"),
        ("arc", {**ARC, "choices": []}, "lists 'text' and 'label' in 'choices', found []"),
        ("arc", {**ARC, "answerKey": "B"}, "one label of each choice, 'B' among them"),
        ("mmlu", without(MMLU, "subject"), "expected the field 'subject'"),
        ("mmlu", {**MMLU, "choices": ["a"] * 3}, "4 texts as 'choices'"),
        ("mmlu", {**MMLU, "answer": "E"}, "an index from 0 to 3 as 'answer', found 'E'"),
        ("mmlu", {**MMLU, "answer": True}, "an index from 0 to 3 as 'answer', found True"),
        ("gsm8k", {**GSM8K, "answer": "4"}, "an answer that ends in '####' and a number"),
        ("gsm8k", without(GSM8K, "answer"), "expected the field 'answer', found question"),
    ],
)
def test_a_bad_line_is_named(
    tmp_path: Path, name: str, record: dict[str, Any], message: str
) -> None:
    good = {"hellaswag": HELLASWAG, "arc": ARC, "mmlu": MMLU, "gsm8k": GSM8K}[name]
    path = lines(tmp_path / "t.jsonl", good, record)
    with pytest.raises(TaskFileError) as error:
        Task.read(name, path)
    assert str(error.value).startswith(f"{path}: line 2: expected")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected at least one question, found none"),
        (b"\n \n", "expected at least one question, found none"),
        (b"{}\n", "line 1: expected the field 'choices', found none"),
        (b"[1]\n", "line 1: expected a JSON object, found list"),
        (b'{"question": \n', "line 1: expected a JSON object, found Expecting value"),
        (b"[" * 100_000, "line 1: expected a JSON object, found"),
        (b"\n\xff\n", "expected UTF-8 text, found byte 0xff at 1"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(data)
    with pytest.raises(TaskFileError, match=r"t\.jsonl") as error:
        Task.read("arc", path)
    assert message in str(error.value)


def test_bad_csv_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a_test.csv"
    path.write_text("Q,1,2,3,4,A\nQ,1,2,3\n")
    with pytest.raises(TaskFileError, match="line 2: expected question, 4 choices and answer"):
        Task.read("mmlu", path)
    path.write_text('Q,1,2,3,4,A\n"Q"x,1,2,3,4,A\n')
    with pytest.raises(TaskFileError, match="line 2: expected comma-separated values"):
        Task.read("mmlu", path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TaskFileError, match="expected CSV files in the folder, found none"):
        Task.read("mmlu", empty)


def test_missing_files_and_examples_are_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "m.jsonl", MMLU)
    with pytest.raises(TaskFileError, match=r"none\.jsonl: No such file"):
        Task.read("mmlu", tmp_path / "none.jsonl")
    few = lines(tmp_path / "few.jsonl", MMLU)
    with pytest.raises(TaskFileError, match="expected 5 examples of abstract_algebra, found 1"):
        Task.read("mmlu", path, shots=few)
    other = lines(tmp_path / "other.jsonl", {**MMLU, "subject": "anatomy"})
    with pytest.raises(TaskFileError, match=r"examples of abstract_algebra, which .* line 1 needs"):
        Task.read("mmlu", path, shots=other, n_shots=1)


def test_impossible_options_are_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", ARC)
    with pytest.raises(ArgumentError, match="task: expected one of hellaswag, arc, mmlu, gsm8k"):
        Task.read("winogrande", path)
    with pytest.raises(ArgumentError, match="shots: expected none for arc"):
        Task.read("arc", path, shots=path)
    with pytest.raises(ArgumentError, match="limit: expected an integer from 1"):
        Task.read("arc", path, limit=0)
    with pytest.raises(ArgumentError, match="n_shots: expected an integer from 0"):
        Task.read("arc", path, n_shots=-1)
