"""A `tokenizer.json` as GGUF's keys: byte-level BPE, of the splits that llama.cpp knows by name.

What llama.cpp would do otherwise than the tokenizer says is refused, not approximated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lockgate.core.errors import UsageError

NORMAL, CONTROL, USER, UNUSED = 1, 3, 4, 5  # GGUF's token types
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2"}
_MOST_WORDS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A vocabulary: tokens and their types by id, merges in order, and what stands around a text.

    `special` are ids by GGUF's name (bos, eos, pad); `split` is llama.cpp's name for the rule that
    cuts a text into words.
    """

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    split: str
    special: Mapping[str, int]
    add_bos: bool
    add_eos: bool


def words_of(
    tokenizer: Mapping[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any], size: int
) -> Words:
    """Returns the vocabulary of `size` tokens.

    `tokenizer`, `settings` and `config` are tokenizer.json, tokenizer_config.json and config.json.
    Raises UsageError for a tokenizer that llama.cpp would not follow.
    """
    model = _object(tokenizer.get("model"))
    split = _split(tokenizer, model)
    ids = _ids(model, tokenizer, size)
    types = [NORMAL if token is not None else UNUSED for token in ids]
    for added in _added(tokenizer):
        types[added["id"]] = CONTROL if added.get("special") else USER
    tokens = tuple(f"[PAD{at}]" if token is None else token for at, token in enumerate(ids))
    special = _special(tokens, settings, config)
    add_bos, add_eos = _around(tokenizer.get("post_processor"), special, tokens)
    return Words(
        tokens=tokens,
        types=tuple(types),
        merges=tuple(_merges(model)),
        split=split,
        special=special,
        add_bos=add_bos,
        add_eos=add_eos,
    )


def _split(tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Returns llama.cpp's name for the pre-tokenizer."""
    kept = ("continuing_subword_prefix", "end_of_word_suffix", "dropout", "byte_fallback")
    if model.get("type") != "BPE" or any(model.get(key) for key in kept):
        raise _unknown(f"its model is {str(model.get('type'))[:40]}, with what is no plain BPE")
    name = _split_name(_object(tokenizer.get("pre_tokenizer")))
    normalizer = tokenizer.get("normalizer")
    normal = None if normalizer is None else _object(normalizer).get("type")
    if name is None or (normal is not None and (name, normal) != ("qwen2", "NFC")):
        raise _unknown("its normalizer and pre_tokenizer are none that llama.cpp has a name for")
    if bool(model.get("ignore_merges")) != (name == "llama-bpe"):
        raise _unknown(f"its ignore_merges is not what llama.cpp does for {name}")
    return name


def _split_name(rule: Mapping[str, Any]) -> str | None:
    parts = rule.get("pretokenizers") if rule.get("type") == "Sequence" else [rule]
    steps = [_object(part) for part in parts] if isinstance(parts, list) else []
    bytewise = steps[-1] if steps else {}
    if bytewise.get("type") != "ByteLevel" or bytewise.get("add_prefix_space", True):
        return None
    if len(steps) == 1:
        return "gpt-2" if bytewise.get("use_regex", True) else None
    first = steps[0]
    plain = first.get("behavior") == "Isolated" and not first.get("invert")
    if len(steps) != 2 or first.get("type") != "Split" or not plain or bytewise.get("use_regex"):
        return None
    return _SPLITS.get(str(_object(first.get("pattern")).get("Regex")))


def _ids(model: Mapping[str, Any], tokenizer: Mapping[str, Any], size: int) -> list[str | None]:
    """Returns each id's token; None where an embedding row has none."""
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not 0 < size <= _MOST_WORDS:
        raise _unknown("it has no vocabulary")
    ids: list[str | None] = [None] * size
    pairs = [*vocabulary.items(), *((added["content"], added["id"]) for added in _added(tokenizer))]
    for token, at in pairs:
        if not isinstance(token, str) or not isinstance(at, int) or not 0 <= at < size:
            raise _unknown(f"token {str(token)[:40]!r} has the id {str(at)[:20]} of {size}")
        if ids[at] not in (None, token):
            raise _unknown(f"two tokens have the id {at}")
        ids[at] = token
    return ids


def _added(tokenizer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = tokenizer.get("added_tokens", [])
    if not isinstance(found, list) or not all(
        isinstance(item, dict) and isinstance(item.get("id"), int) and item["id"] >= 0
        and isinstance(item.get("content"), str) for item in found
    ):  # fmt: skip
        raise _unknown("its added_tokens are no list of ids and contents")
    return found


def _merges(model: Mapping[str, Any]) -> list[str]:
    """Returns merges as text, "a b"; a space within a part as Ġ's letter, as the bytes have it."""
    found = model.get("merges")
    if not isinstance(found, list):
        raise _unknown("it has no merges")
    made = []
    for merge in found:
        if isinstance(merge, str):
            made.append(merge)
        elif isinstance(merge, list) and len(merge) == 2 and all(isinstance(p, str) for p in merge):
            made.append(" ".join(part.replace(" ", chr(ord(" ") + 256)) for part in merge))
        else:
            raise _unknown("a merge is no pair of texts")
    return made


def _special(
    tokens: tuple[str, ...], settings: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, int]:
    """Returns the ids of bos, eos and pad: by the tokenizer's settings, or by config.json."""
    found: dict[str, int] = {}
    for name in ("bos", "eos", "pad"):
        token = settings.get(f"{name}_token")
        content = token.get("content") if isinstance(token, dict) else token
        at = config.get(f"{name}_token_id")
        at = at[0] if isinstance(at, list) and at else at
        if isinstance(content, str) and content in tokens:
            found[name] = tokens.index(content)
        elif isinstance(at, int) and 0 <= at < len(tokens):
            found[name] = at
    return found


def _around(rule: object, special: Mapping[str, int], tokens: tuple[str, ...]) -> tuple[bool, bool]:
    """Returns whether bos comes before and eos after a text; refuses all else that would."""
    steps = [_object(rule)] if rule is not None else []
    if steps and steps[0].get("type") == "Sequence":
        inner = steps[0].get("processors")
        steps = [_object(item) for item in inner] if isinstance(inner, list) else [{}]
    around: list[list[str]] = [[], []]
    for step in steps:
        if step.get("type") == "TemplateProcessing" and isinstance(step.get("single"), list):
            after = 0
            for piece in map(_object, step["single"]):
                if "Sequence" in piece:
                    after = 1
                else:
                    around[after].append(str(_object(piece.get("SpecialToken")).get("id")))
        elif step.get("type") != "ByteLevel":
            raise _unknown("its post_processor is neither a template nor byte-level")
    bos = [tokens[special["bos"]]] if "bos" in special else []
    eos = [tokens[special["eos"]]] if "eos" in special else []
    if around[0] not in ([], bos) or around[1] not in ([], eos):
        raise _unknown("its post_processor adds more than bos before and eos after a text")
    return bool(around[0]), bool(around[1])


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _unknown(why: str) -> UsageError:
    return UsageError(
        f"the tokenizer can't be written as GGUF: {why}",
        hint="byte-level BPE split as by GPT-2, Llama 3 or Qwen 2 can; llama.cpp's own converter"
        " knows more",
    )
