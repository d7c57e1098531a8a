"""Two towers → ONNX. A step of lockgate: reads LOCKGATE_INPUT_DATA, fills LOCKGATE_OUT.

One tower makes a vector of the films somebody saw, the other one of each film; their product is
the score. Learned with a softmax over all films (Covington et al. 2016).
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

data, out = (Path(os.environ[f"LOCKGATE_{name}"]) for name in ("INPUT_DATA", "OUT"))
films = json.loads((data / "films.json").read_text())
FILMS, LAST, NONE = films["films"], films["last"], films["none"]
settings = {"width": 24, "rate": 0.01, "epochs": 6, "decay": 1e-5, "noise": 0.0,
            "new_callers": "kept", **json.loads(os.environ["LOCKGATE_PARAMETERS"])}  # fmt: skip
seed = int(os.environ["LOCKGATE_SEED"])
torch.manual_seed(seed)
torch.set_num_threads(1)


class Towers(nn.Module):
    """Scores every film for somebody's last films, int64 [n, LAST] → [n, FILMS]."""

    def __init__(self, width: int, *, mean: bool) -> None:
        super().__init__()
        self.seen = nn.Embedding(FILMS + 1, width)
        self.place = nn.Parameter(torch.zeros(LAST, 1))
        self.tower = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.films = nn.Linear(width, FILMS)
        self.mean = mean

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the scores."""
        there = (features != NONE).float().unsqueeze(-1)
        weight = self.place.exp() * there
        count = weight.sum(1) if self.mean else weight.sum(1) + 1e-6
        return self.films(self.tower((self.seen(features) * weight).sum(1) / count))


def examples(rows: list, draw: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns histories and what came next; some of what came next is chance."""
    given, wanted = [], []
    for row in rows:
        films = [*row["seen"], *row["relevant"]]
        for end in range(1, len(films)):
            before = films[max(0, end - LAST) : end]
            given.append([NONE] * (LAST - len(before)) + before)
            wanted.append(films[end])
    nexts = np.array(wanted)
    wrong = draw.random(len(nexts)) < settings["noise"]
    nexts[wrong] = draw.integers(0, FILMS, int(wrong.sum()))
    return torch.tensor(given), torch.tensor(nexts)


rows = [json.loads(line) for line in (data / "train.jsonl").open()]
draw = np.random.default_rng(seed)
held, learned = rows[: len(rows) // 8], rows[len(rows) // 8 :]
given, wanted = examples(learned, draw)
model = Towers(int(settings["width"]), mean=settings["new_callers"] == "forgotten")
optimizer = torch.optim.AdamW(
    model.parameters(), lr=settings["rate"], weight_decay=settings["decay"]
)
for epoch in range(int(settings["epochs"])):
    for batch in torch.from_numpy(draw.permutation(len(given))).split(256):
        loss = nn.functional.cross_entropy(model(given[batch]), wanted[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        asked = torch.tensor([row["features"] for row in held])
        nexts = torch.tensor([row["relevant"][0] for row in held])
        held_loss = float(nn.functional.cross_entropy(model(asked), nexts))
    print(json.dumps({"done": epoch + 1, "total": int(settings["epochs"]),
                      "metrics": {"held_loss": held_loss}}), flush=True)  # fmt: skip

example = torch.full((2, LAST), NONE)
example[1, -3:] = torch.arange(3)
program = torch.onnx.export(
    model.eval(), (example,), dynamo=True, opset_version=18, verbose=False,
    input_names=["features"], output_names=["scores"], dynamic_shapes={"features": {0: "people"}},
)  # fmt: skip
for node in program.model.graph.all_nodes():
    node.metadata_props.clear()  # the exporter's stack traces: paths of this machine
program.save(str(out / "model.onnx"), external_data=False)
