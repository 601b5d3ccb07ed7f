"""Models that most test files share; each is written once per run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny import Model, Shape, chain, random_model

from pyengine import Engine

ModelMaker = Callable[[Shape], Path]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> ModelMaker:
    """Path of a random model of a shape; the same shape gives the same file."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[Shape, Path] = {}

    def make(shape: Shape) -> Path:
        if shape not in made:
            made[shape] = random_model(shape).save(folder / f"{len(made)}.gguf")
        return made[shape]

    return make


@pytest.fixture(scope="session")
def model_path(make_model: ModelMaker) -> Path:
    """The tiny F32 model with the defaults of ``Shape``."""
    return make_model(Shape())


@pytest.fixture(scope="session")
def engine(model_path: Path) -> Iterator[Engine]:
    """An engine on ``model_path``; tests leave no session in it."""
    with Engine(model_path, n_threads=2) as opened:
        yield opened


@pytest.fixture
def model() -> Model:
    """The default model before it is written, to be spoilt."""
    return random_model(Shape())


@pytest.fixture
def recite(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """Opens an engine that recites the given pieces after token 0."""
    opened: list[Engine] = []

    def make(*pieces: bytes | str, context: int = 256) -> Engine:
        script = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]
        path = chain(script, context=context).save(tmp_path / f"chain-{len(opened)}.gguf")
        opened.append(Engine(path, n_threads=1))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
