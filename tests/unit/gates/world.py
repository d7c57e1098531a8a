"""Versions that answer from a function, for gates that are tested without processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lockgate.core.errors import NotFoundError, TemporaryError
from lockgate.core.events import VersionJudged
from lockgate.gates.api import Asked, Subject
from lockgate.observe.scoring.api import exchange
from lockgate.observe.scoring.make import make_scorer

Answers = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
CANDIDATE = Subject(model="acme/x", number=2, digest="blake3:" + "2" * 64, size=900)
BASELINE = Subject(model="acme/x", number=1, digest="blake3:" + "1" * 64, size=800)


class Answering:
    """`Served` over a function of path and body."""

    url = "http://nowhere"

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self.asked = 0

    def post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked += 1
        return self._answers(path, body)

    def memory(self) -> int:
        return 50_000_000


def chat(answer: Callable[[str], str]) -> Answers:
    """Answers the last question with `answer`; None means no answer."""

    def post(path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        assert path == "/v1/chat/completions"
        said = answer(body["messages"][-1]["content"])
        if said is None:
            raise TemporaryError("busy")
        return {"choices": [{"message": {"content": said}}], "usage": {"completion_tokens": 4}}

    return post


def table(chances: Callable[[Sequence[float]], float]) -> Answers:
    """Gives each row [1 - chance, chance]."""

    def post(path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        (tensor,) = body["inputs"]
        rows, width = tensor["shape"]
        data = tensor["data"]
        found = [chances(data[i * width : (i + 1) * width]) for i in range(rows)]
        flat = [value for chance in found for value in (1 - chance, chance)]
        return {"outputs": [{"name": "probabilities", "shape": [rows, 2], "data": flat}]}

    return post


class Room:
    """A folder with files, two versions, and what was recorded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions: dict[str, Answering] = {}
        self.recorded: list[VersionJudged] = []

    def lines(self, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        return self.text(name, text)

    def text(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return name

    def answers(self, subject: Subject, answers: Answers) -> Answering:
        self.versions[subject.digest] = Answering(answers)
        return self.versions[subject.digest]

    def asked(
        self, *, baseline: Subject | None = BASELINE, candidate: Subject = CANDIDATE
    ) -> Asked:
        return Asked(
            candidate=candidate, baseline=baseline, target="prod", files=self._file, now=1000.0,
            serve=lambda subject: self.versions[subject.digest], tell=lambda *_: None,
            scores=lambda d, request, answer: make_scorer(d).score(exchange(request, answer)),
        )  # fmt: skip

    def _file(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise NotFoundError(f"there is no file {name}")
        return path
