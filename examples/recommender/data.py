"""Makes the evenings of people who watch films: what they like, and what comes next."""

from __future__ import annotations

import numpy as np

FILMS, GENRES, LAST = 240, 12, 10
NONE = FILMS  # fills up the history of somebody who has seen fewer than LAST films


def evenings(seed: int, people: int) -> list[dict]:
    """Returns a row for each of `people`: the last films as `features`, what came next.

    `relevant` are the next three films, `seen` all before them.
    """
    world = np.random.default_rng(5)  # the films are the same whoever watches
    genre = world.integers(0, GENRES, FILMS)
    follows = world.permutation(FILMS)  # a film's sequel
    weight = 1 / (1 + world.permutation(FILMS)) ** 0.6
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(people):
        liked = draw.choice(GENRES, 2, replace=False)
        taste = weight * np.where(np.isin(genre, liked), 1.0, 0.02)
        seen: list[int] = []
        for _ in range(int(draw.integers(8, 20))):
            left = taste.copy()
            left[seen] = 0
            film = int(draw.choice(FILMS, p=left / left.sum()))
            if seen and draw.random() < 0.35 and int(follows[seen[-1]]) not in seen:
                film = int(follows[seen[-1]])
            seen.append(film)
        history = seen[:-3][-LAST:]
        rows.append({"features": [NONE] * (LAST - len(history)) + history,
                     "relevant": seen[-3:], "seen": seen[:-3]})  # fmt: skip
    return rows
