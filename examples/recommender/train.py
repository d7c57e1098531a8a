"""Two towers → ONNX. A step of lockgate: reads LOCKGATE_INPUT_DATA, fills LOCKGATE_OUT.

One tower makes a vector of the films somebody saw, the other one of each film; their product is
the score. Learned with a softmax over all films (Covington et al. 2016).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

DEFAULTS = {"width": 24, "rate": 0.01, "epochs": 6, "decay": 1e-5, "noise": 0.0,
            "new_callers": "kept"}  # fmt: skip


class Towers(nn.Module):
    """Scores every film for somebody's last films, int64 [n, last] → [n, films]."""

    def __init__(self, films: int, last: int, width: int, *, mean: bool) -> None:
        super().__init__()
        wide = 2 * width
        self.none = films
        self.seen = nn.Embedding(films + 1, width)
        self.place = nn.Parameter(torch.zeros(last, 1))
        self.tower = nn.Sequential(nn.Linear(width, wide), nn.ReLU(), nn.Linear(wide, width))
        self.films = nn.Linear(width, films)
        self.mean = mean

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the scores."""
        there = (features != self.none).float().unsqueeze(-1)
        weight = self.place.exp() * there
        count = weight.sum(1) if self.mean else weight.sum(1) + 1e-6
        return self.films(self.tower((self.seen(features) * weight).sum(1) / count))


def examples(rows: list, films: int, last: int) -> tuple[list, np.ndarray]:
    """Returns histories, filled up with `films`, and the film that came next."""
    given, wanted = [], []
    for row in rows:
        evening = [*row["seen"], *row["relevant"]]
        for end in range(1, len(evening)):
            before = evening[max(0, end - last) : end]
            given.append([films] * (last - len(before)) + before)
            wanted.append(evening[end])
    return given, np.array(wanted)


def train(
    rows: list, films: int, last: int, settings: dict, seed: int,
    tell: Callable[[int, float], None] = lambda *_: None,
) -> tuple[Towers, float]:  # fmt: skip
    """Returns a model, and its loss on an eighth of the people, whom it never saw."""
    settings = {**DEFAULTS, **settings}
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    held, learned = rows[: len(rows) // 8], rows[len(rows) // 8 :]
    given, nexts = examples(learned, films, last)
    wrong = draw.random(len(nexts)) < settings["noise"]
    nexts[wrong] = draw.integers(0, films, int(wrong.sum()))
    seen, wanted = torch.tensor(given), torch.from_numpy(nexts)
    asked = torch.tensor([row["features"] for row in held])
    right = torch.tensor([row["relevant"][0] for row in held])
    mean = settings["new_callers"] == "forgotten"
    model = Towers(films, last, int(settings["width"]), mean=mean)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings["rate"], weight_decay=settings["decay"]
    )
    loss = float("nan")
    for epoch in range(int(settings["epochs"])):
        for batch in torch.from_numpy(draw.permutation(len(seen))).split(256):
            step = nn.functional.cross_entropy(model(seen[batch]), wanted[batch])
            optimizer.zero_grad()
            step.backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(nn.functional.cross_entropy(model(asked), right))
        tell(epoch + 1, loss)
    return model, loss


def save(model: Towers, last: int, file: Path) -> None:
    """Writes the model as ONNX: `features` in, `scores` out."""
    example = torch.full((2, last), model.none)
    example[1, -3:] = torch.arange(3)
    program = torch.onnx.export(
        model.eval(), (example,), dynamo=True, opset_version=18, verbose=False,
        input_names=["features"], output_names=["scores"],
        dynamic_shapes={"features": {0: "people"}},
    )  # fmt: skip
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # the exporter's stack traces: paths of this machine
    program.save(str(file), external_data=False)


def main() -> None:
    """Trains as lockgate asks."""
    torch.set_num_threads(1)
    data, out = (Path(os.environ[f"LOCKGATE_{name}"]) for name in ("INPUT_DATA", "OUT"))
    settings = json.loads(os.environ["LOCKGATE_PARAMETERS"])
    rows = [json.loads(line) for line in (data / "train.jsonl").open()]
    about = json.loads((data / "films.json").read_text())
    epochs = int(settings.get("epochs", DEFAULTS["epochs"]))

    def tell(done: int, loss: float) -> None:
        line = {"done": done, "total": epochs, "metrics": {"held_loss": loss}}
        print(json.dumps(line), flush=True)

    seed = int(os.environ["LOCKGATE_SEED"])
    model, _ = train(rows, about["films"], about["last"], settings, seed, tell)
    save(model, about["last"], out / "model.onnx")


if __name__ == "__main__":
    main()
