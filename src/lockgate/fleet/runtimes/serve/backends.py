"""Language models behind the engine: onnxruntime-genai, and torch with transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lockgate.core.errors import UsageError
from lockgate.fleet.runtimes.serve.engine import Backend, Sampling
from lockgate.fleet.runtimes.serve.exchange import Refused
from lockgate.fleet.runtimes.serve.scored import Scored, score


def load(kind: str, folder: Path, *, threads: int) -> Backend:
    """Loads the language model in `folder` with `kind`: `genai` or `transformers`."""
    if kind == "genai":
        return GenaiBackend(folder, threads=threads)
    return TorchBackend(folder, threads=threads)


class GenaiBackend:
    """A model folder that onnxruntime-genai has loaded onto `threads` CPU threads."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        import onnxruntime_genai as genai

        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        try:
            settings = json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]
            self.context = int(settings["context_length"])
            self.vocabulary = int(settings["vocab_size"])
            config = genai.Config(str(folder))
            config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
            self._model = genai.Model(config)
            self._tokenizer = genai.Tokenizer(self._model)
            self._verbatim = genai.Tokenizer(self._model)  # special tokens by their names too
            self._verbatim.update_options(skip_special_tokens="false")
        except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"onnxruntime-genai can't load {folder}: {error!r}",
                hint="export the folder again with onnxruntime_genai.models.builder",
            ) from error
        self._genai: Any = genai
        self._ends = frozenset(int(token) for token in self._tokenizer.eos_token_ids)
        self.temperature = default_temperature(folder)

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """Returns the prompt that the folder's chat template makes of `messages`."""
        try:
            text = self._tokenizer.apply_chat_template(
                json.dumps(list(messages)), add_generation_prompt=True
            )
        except RuntimeError as error:
            raise Refused(
                400, f"the chat template refuses these messages: {error}", param="messages"
            ) from error
        return str(text)

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of `text`."""
        return [int(token) for token in self._tokenizer.encode(text)]

    def start(self, prompt: Sequence[int], sampling: Sampling) -> GenaiDecoding | Scored:
        """Reads the prompt; the answer's memory is set aside here, all of it."""
        if sampling.score is not None:
            return self._scored(prompt, sampling)
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(**_search(prompt, sampling))
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(list(prompt))
        return GenaiDecoding(generator, self._tokenizer.create_stream(), self._ends)

    def _scored(self, prompt: Sequence[int], sampling: Sampling) -> Scored:
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=len(prompt), do_sample=False)
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(list(prompt))
        return score(
            generator.get_output("logits")[0], prompt, self._text, best=sampling.score or 0,
            answer=sampling.max_tokens > 0,
        )  # fmt: skip

    def _text(self, token: int) -> str:
        return str(self._verbatim.decode([token]))


class GenaiDecoding:
    """One generator with the stream that turns its tokens into text."""

    def __init__(self, generator: Any, stream: Any, ends: frozenset[int]) -> None:
        self._generator = generator
        self._stream = stream
        self._ends = ends

    def step(self) -> tuple[str, bool]:
        """Decodes one token; an end token has no text."""
        self._generator.generate_next_token()
        token = int(self._generator.get_next_tokens()[0])
        if token in self._ends:
            return "", True
        return str(self._stream.decode(token)), False


def _search(prompt: Sequence[int], sampling: Sampling) -> dict[str, float | bool]:
    options: dict[str, float | bool] = {"max_length": len(prompt) + sampling.max_tokens}
    if sampling.temperature == 0:
        return {**options, "do_sample": False}
    options |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
    options["top_k"] = sampling.top_k
    if sampling.seed is not None:
        options["random_seed"] = sampling.seed % 2**31
    return options


class TorchBackend:
    """A folder of safetensors that transformers has loaded onto `threads` CPU threads."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(threads)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"transformers can't load {folder}: {error}",
                hint="the folder needs config.json, a tokenizer and safetensors that fit together",
            ) from error
        self._model.eval()
        self._torch: Any = torch
        ends = self._model.generation_config.eos_token_id
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])
        config = self._model.config.get_text_config()
        self.context = int(config.max_position_embeddings)
        self.vocabulary = int(config.vocab_size)
        self.temperature = default_temperature(folder)

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """Returns the prompt that the folder's chat template makes of `messages`."""
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # jinja2's, or one that the template raises
            raise Refused(
                400, f"the chat template refuses these messages: {error}", param="messages"
            ) from error
        return str(text)

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of `text`, with no special ones added."""
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]

    def start(self, prompt: Sequence[int], sampling: Sampling) -> TorchDecoding | Scored:
        """Sets up the answer; the prompt is read with the first token."""
        if sampling.score is not None:
            return self._scored(prompt, sampling)
        choose = TokenChoice(self._torch, sampling)
        return TorchDecoding(self._model, self._tokenizer, prompt, choose, self._ends)

    def _scored(self, prompt: Sequence[int], sampling: Sampling) -> Scored:
        with self._torch.inference_mode():
            logits = self._model(self._torch.tensor([list(prompt)])).logits[0].float().numpy()
        return score(
            logits, prompt, self._text, best=sampling.score or 0, answer=sampling.max_tokens > 0
        )

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))


class TorchDecoding:
    """One answer with its cache of keys and values."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompt: Sequence[int],
        choose: TokenChoice,
        ends: frozenset[int],
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._next = list(prompt)
        self._choose = choose
        self._ends = ends
        self._cache: Any = None
        self._made: list[int] = []
        self._from = self._until = 0

    def step(self) -> tuple[str, bool]:
        """Decodes one token; text comes once its last character is whole."""
        token, self._cache = self._choose.after(self._model, self._next, self._cache)
        self._next = [token]
        if token in self._ends:
            return "", True
        self._made.append(token)
        return self._fresh_text(), False

    def _fresh_text(self) -> str:
        """Returns the text that the last token completes.

        Only the tokens since the last but one complete text are decoded again, because a token's
        text may depend on the one before it (a space, half a character).
        """
        before = self._text(self._made[self._from : self._until])
        now = self._text(self._made[self._from :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._from, self._until = self._until, len(self._made)
        return now[len(before) :]

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


class TokenChoice:
    """Runs the model and picks the next token as the sampling says."""

    def __init__(self, torch: Any, sampling: Sampling) -> None:
        self._torch = torch
        self._sampling = sampling
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed % 2**63)

    def after(self, model: Any, tokens: Sequence[int], cache: Any) -> tuple[int, Any]:
        """Returns the token that follows `tokens` and the cache that knows them."""
        torch = self._torch
        with torch.inference_mode():
            output = model(torch.tensor([list(tokens)]), past_key_values=cache, use_cache=True)
            return self._pick(output.logits[0, -1].float()), output.past_key_values

    def _pick(self, logits: Any) -> int:
        torch, sampling = self._torch, self._sampling
        if not bool(torch.isfinite(logits).all()):
            raise ArithmeticError("its weights give scores that are not finite")
        if sampling.temperature == 0:
            return int(logits.argmax())
        count = sampling.top_k if sampling.top_k > 0 else logits.numel()
        values, tokens = torch.topk(logits / sampling.temperature, min(count, logits.numel()))
        shares = torch.softmax(values, dim=-1)
        before = torch.cumsum(shares, dim=-1) - shares
        shares[before > sampling.top_p] = 0
        return int(tokens[torch.multinomial(shares, 1, generator=self._random)])


def default_temperature(folder: Path) -> float:
    """Returns what `generation_config.json` asks for: 0 for `do_sample: false`, 1 for silence."""
    try:
        settings = json.loads((folder / "generation_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return 1.0
    if not isinstance(settings, dict) or settings.get("do_sample") is False:
        return 0.0 if isinstance(settings, dict) else 1.0
    value = settings.get("temperature", 1.0)
    return float(value) if isinstance(value, int | float) else 1.0
