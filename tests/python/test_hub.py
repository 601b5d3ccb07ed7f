"""Checkpoints of the hub: a stand-in for it answers, refuses or cannot be reached."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from quantized import GPTQ, Source, packing

import converters
from converters import _hub
from converters.__main__ import main
from pyengine import ArgumentError, DownloadError, Engine

errors = pytest.importorskip("huggingface_hub.errors")

GOLDEN = Path(__file__).parents[1] / "golden" / "llama-grouped-tied"


class Hub:
    """Answers as huggingface_hub does, from one folder.

    Attributes:
        trouble: Raised instead of an answer.
        cached: Whether there is a copy from an earlier time.
        asked: Names, revisions and files that were asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.errors = errors
        self.trouble: Exception | None = None
        self.cached = False
        self.asked: list[Any] = []
        self._folder = folder
        shutil.copytree(GOLDEN, folder / "remote")
        for name in ("README.md", "pytorch_model.bin", "original/model.safetensors"):
            (folder / "remote" / name).parent.mkdir(exist_ok=True)
            (folder / "remote" / name).write_bytes(b"not needed")

    def HfApi(self) -> Hub:
        return self

    def model_info(self, name: str, *, revision: str | None) -> Any:
        self.asked.append((name, revision))
        if self.trouble is not None:
            raise self.trouble
        remote = self._folder / "remote"
        files = [str(p.relative_to(remote)) for p in remote.rglob("*") if p.is_file()]
        return SimpleNamespace(sha="c0ffee", siblings=[SimpleNamespace(rfilename=f) for f in files])

    def snapshot_download(
        self,
        name: str,
        *,
        revision: str | None,
        allow_patterns: list[str] | None = None,
        local_files_only: bool = False,
    ) -> str:
        local = self._folder / "c0ffee"
        if local_files_only:
            if not self.cached:
                raise errors.LocalEntryNotFoundError("nothing here")
            return str(self._folder / "remote")
        assert revision == "c0ffee"  # the state that was listed, whatever comes meanwhile
        self.asked.append(allow_patterns)
        local.mkdir(exist_ok=True)
        for file in allow_patterns or ():
            shutil.copy(self._folder / "remote" / file, local / file)
        return str(local)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)  # type: ignore[arg-type]
    return made


def refusal(kind: type[Exception]) -> Exception:
    response = SimpleNamespace(headers={}, request=None, status_code=403)
    return kind("no", response=response)  # type: ignore[call-arg]


def test_only_the_needed_files_are_fetched_and_converted(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["hf:some-org/Tiny_1.5@v2", "--type", "f32", "-q"]) == 0
    assert hub.asked == [
        ("some-org/Tiny_1.5", "v2"),
        ["config.json", "model.safetensors", "tokenizer.json"],
    ]
    with Engine(tmp_path / "Tiny_1.5-f32.gguf", n_threads=1) as engine:
        assert engine.file.metadata["general.name"] == "Tiny_1.5"


def test_the_folder_converts_to_the_same_file(hub: Hub, tmp_path: Path) -> None:
    converters.convert("hf:o/n", tmp_path / "a.gguf", dtype="f16")
    converters.convert(GOLDEN, tmp_path / "b.gguf", dtype="f16", name="n")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_one_kind_of_weights_is_enough() -> None:
    shards = [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    index = "model.safetensors.index.json"
    old = ["pytorch_model.bin", "pytorch_model.bin.index.json"]
    rest = ["consolidated.safetensors", "onnx/model.onnx", "README.md", "model.safetensors.bak"]
    assert _hub.needed([*old, *shards, index, *rest, "config.json"]) == sorted(
        [*shards, index, "config.json"]
    )
    assert _hub.needed([*old, *rest, "tokenizer.model"]) == sorted([*old, "tokenizer.model"])
    assert _hub.needed(rest) == []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("GatedRepoError", "found a gated model: accept its terms at https://huggingface.co/o/n"),
        ("RepositoryNotFoundError", "expected a model on the hub, found none of that name"),
        ("RevisionNotFoundError", "expected a revision of o/n, found none called 'v9'"),
        ("HfHubHTTPError", "found the hub's refusal: no"),
    ],
)
def test_refusals_are_told(
    hub: Hub, kind: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.trouble = refusal(getattr(errors, kind))
    with pytest.raises(DownloadError, match="hf:o/n@v9: ") as caught:
        _hub.fetch("hf:o/n@v9")
    assert message in str(caught.value)
    assert main(["hf:o/n@v9", "-q"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: hf:o/n@v9: expected ") and shown.count("\n") == 1


@pytest.mark.parametrize("trouble", [ConnectionError("no route"), TimeoutError(), Exception("tls")])
def test_without_a_network_the_cache_serves(hub: Hub, trouble: Exception) -> None:
    hub.trouble = trouble
    with pytest.raises(
        DownloadError, match="expected the hub or files in its cache, found neither"
    ):
        _hub.fetch("hf:o/n")
    hub.cached = True
    assert _hub.fetch("hf:o/n").name == "remote"


def test_offline_mode_is_no_network(hub: Hub) -> None:
    hub.trouble = errors.OfflineModeIsEnabled("offline")
    hub.cached = True
    assert _hub.fetch("hf:o/n").name == "remote"


def test_a_full_disk_is_told_as_such(hub: Hub) -> None:
    hub.trouble = OSError(28, "No space left on device", "/cache/file")
    with pytest.raises(DownloadError, match="/cache/file: No space left on device"):
        _hub.fetch("hf:o/n")


def test_the_extra_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match=r"found none: pip install 'pyengine\[hub\]'"):
        _hub.fetch("hf:o/n")


@pytest.mark.parametrize(
    "spec", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:a /b", "hf:../b@x y"]
)
def test_wrong_spellings(hub: Hub, spec: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="source: expected hf:org/name"):
        converters.convert(spec, tmp_path / "no.gguf")
    assert main([spec]) == 2
    assert hub.asked == []


def test_a_name_that_the_hub_refuses(hub: Hub) -> None:
    hub.trouble = errors.HFValidationError("no")
    with pytest.raises(ArgumentError, match="expected a name that the hub allows"):
        _hub.fetch("hf:--/..")


def test_nothing_is_fetched_for_a_file_that_is_there(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "n-q4_0.gguf").write_text("mine")
    assert main(["hf:o/n"]) == 1
    assert hub.asked == []
    assert (tmp_path / "n-q4_0.gguf").read_text() == "mine"


def test_a_file_is_named_after_what_the_fetched_config_says(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["hf:o/n", "-q"]) == 0
    with Engine(tmp_path / "n-q4_0.gguf", n_threads=1) as engine:
        assert engine.file.metadata["general.name"] == "n"
    (tmp_path / "n-q4_0.gguf").unlink()
    Source(GPTQ, packing("gptq")).save(tmp_path / "hub" / "remote")
    assert main(["hf:o/n", "-q"]) == 0
    with Engine(tmp_path / "n-auto.gguf", n_threads=1) as engine:
        assert engine.file.metadata["general.name"] == "n"
