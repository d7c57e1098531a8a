"""Rows of a dataset folder → token ids, split by content so that no text is on both sides."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockgate.core.digests import digest_of, raw_of
from lockgate.core.errors import UsageError

_IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One example: token ids, and for each the id to learn (−100: none), or a class."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    label: int = -1


def split(
    rows: Sequence[Mapping[str, Any]], share: float, seed: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Returns rows to learn from and rows to measure with, by a digest of each row's content.

    The same content is always on the same side, so that nothing learned is measured.
    """
    sides: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] = ([], [])
    for row in rows:
        text = json.dumps([seed, row], sort_keys=True)
        place = int.from_bytes(raw_of(digest_of(text.encode()))[:8], "big") / 2**64
        sides[place < share].append(row)
    return sides


def encode(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, longest: int, *, classes: Sequence[str] = ()
) -> list[Row]:
    """Returns rows as token ids, cut at `longest`.

    `text` is learned whole; of `messages`, or `question` and `answer`, only the last answer is.
    With `classes` a row has `text` and `label`. Raises UsageError for rows of another form.
    """
    made = [_row(row, tokenizer, longest, classes, number) for number, row in enumerate(rows, 1)]
    return [row for row in made if row.label >= 0 or any(x != _IGNORED for x in row.labels)]


def _row(
    row: Mapping[str, Any], tokenizer: Any, longest: int, classes: Sequence[str], number: int
) -> Row:
    if classes:
        ids = tokenizer(str(row.get("text", "")), truncation=True, max_length=longest)["input_ids"]
        return Row(ids=tuple(ids), labels=(), label=classes.index(str(row.get("label"))))
    if isinstance(row.get("text"), str):
        ids = tokenizer(row["text"])["input_ids"]
        if tokenizer.eos_token_id is not None:
            ids = [*ids, tokenizer.eos_token_id]
        return Row(ids=tuple(ids[:longest]), labels=tuple(ids[:longest]))
    messages = row.get("messages")
    if messages is None and "question" in row and "answer" in row:
        messages = [{"role": "user", "content": str(row["question"])},
                    {"role": "assistant", "content": str(row["answer"])}]  # fmt: skip
    if not isinstance(messages, list) or len(messages) < 2:
        raise UsageError(
            f"row {number} has neither 'text', nor 'messages', nor 'question' and 'answer'",
            hint=f"it has {', '.join(map(str, row))}",
        )
    asked = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    if list(whole[: len(asked)]) != list(asked):
        raise UsageError("the chat template does not continue a prompt with its answer")
    labels = [_IGNORED] * len(asked) + list(whole[len(asked) :])
    return Row(ids=tuple(whole[:longest]), labels=tuple(labels[:longest]))


def class_names(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Returns the labels that rows have, sorted; raises UsageError for fewer than two."""
    found = sorted({str(row["label"]) for row in rows if "label" in row})
    if len(found) < 2 or any("label" not in row or "text" not in row for row in rows):
        raise UsageError("a classifier needs rows with 'text' and 'label', and two labels at least")
    return tuple(found)


def batches(rows: Sequence[Row], size: int, seed: int, epoch: int) -> Iterator[list[Row]]:
    """Yields the batches of an epoch, in an order that its seed and number decide alone."""
    order = np.random.default_rng([seed, epoch]).permutation(len(rows))
    for begin in range(0, len(order), size):
        yield [rows[int(i)] for i in order[begin : begin + size]]


def padded(rows: Sequence[Row], pad: int) -> tuple[Any, Any, Any]:
    """Returns ids, mask and labels of a batch as tensors [rows, longest], or [rows] of classes."""
    import torch

    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), _IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        mask[index, : len(row.ids)] = 1
        if row.labels:
            labels[index, : len(row.labels)] = torch.tensor(row.labels)
    if rows[0].label >= 0:
        labels = torch.tensor([row.label for row in rows])
    return ids, mask, labels
