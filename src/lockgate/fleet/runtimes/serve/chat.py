"""The OpenAI API over an engine: the handlers of a language model's process."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from lockgate.fleet.runtimes.serve import openai
from lockgate.fleet.runtimes.serve.engine import Engine, Piece, Reason, Sampling, Ticket
from lockgate.fleet.runtimes.serve.exchange import Exchange, Gone, Refused, read_json
from lockgate.fleet.runtimes.serve.metrics import Metrics

_BODY_LIMIT = 4 * 1024 * 1024
_CHARACTERS_PER_TOKEN = 256  # no vocabulary has longer tokens; spares reading a hopeless prompt
_ROUTES = {
    "/v1/models": "GET",
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
}


class ChatService:
    """Serves one language model under the name `model` (its last part alone will do)."""

    def __init__(self, engine: Engine, metrics: Metrics, *, model: str, version: str) -> None:
        self._engine = engine
        self._metrics = metrics
        self._model = model
        self._version = version
        self._since = int(time.time())
        self._tokenizing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokens")
        metrics.watch(lambda: engine.running, lambda: engine.waiting)

    def open(self) -> None:
        """Starts the engine."""
        self._engine.open()

    def close(self) -> None:
        """Stops the engine."""
        self._engine.close()
        self._tokenizing.shutdown()

    def route(self, path: str) -> tuple[str, str] | None:
        """Returns the route's name and its method, None when there is none."""
        if path.startswith("/v1/models/"):
            return "/v1/models/{model}", "GET"
        return (path, _ROUTES[path]) if path in _ROUTES else None

    def error(self, refused: Refused) -> Mapping[str, object]:
        """Returns an error in OpenAI's shape."""
        return openai.error(refused)

    async def serve(self, route: str, exchange: Exchange, began: float) -> None:
        """Answers one request; `began` is the monotonic time of its arrival."""
        if route == "/v1/models":
            await exchange.reply(200, {"object": "list", "data": [self._card()]})
        elif route == "/v1/models/{model}":
            self._check_model(exchange.path.removeprefix("/v1/models/"))
            await exchange.reply(200, self._card())
        else:
            await self._complete(exchange, began, chat=route == "/v1/chat/completions")

    def _card(self) -> dict[str, object]:
        return {
            "id": self._model,
            "object": "model",
            "created": self._since,
            "owned_by": "lockgate",
            "root": self._version,
            "max_model_len": self._engine.backend.context,
        }

    def _check_model(self, name: object) -> None:
        if not isinstance(name, str) or not name:
            raise Refused(400, "model: name the model", param="model", code="invalid_value")
        if name not in (self._model, self._model.rpartition("/")[2]):
            raise Refused(
                404,
                f"the model {name!r} is not served here; {self._model!r} is",
                param="model",
                code="model_not_found",
            )

    async def _complete(self, exchange: Exchange, began: float, *, chat: bool) -> None:
        body = read_json(await exchange.body(_BODY_LIMIT))
        self._check_model(body.get("model"))
        ask = openai.parse(body, chat=chat, temperature=self._engine.backend.temperature)
        loop = asyncio.get_running_loop()
        ticket = await loop.run_in_executor(self._tokenizing, self._tokens, ask)
        answer = _Answer(Ticket(*ticket), self._metrics, began)
        shape = openai.Shape(chat=chat, head=self._answer_head(chat=chat))
        gone = asyncio.create_task(exchange.until_gone())
        gone.add_done_callback(lambda _: answer.ticket.cancel())
        work = asyncio.create_task(self._send(exchange, ask, answer, shape))
        try:
            await asyncio.wait((gone, work), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Gone
            await work
        finally:
            answer.ticket.cancel()
            await _end(gone, work)
            answer.count()

    def _answer_head(self, *, chat: bool) -> dict[str, object]:
        prefix = "chatcmpl" if chat else "cmpl"
        return {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": "",
            "created": int(time.time()),
            "model": self._model,
            "system_fingerprint": self._version,
        }

    def _tokens(self, ask: openai.Ask) -> tuple[Sequence[int], Sampling]:
        """Returns prompt and sampling of `ask`; Refused (400) when both don't fit the context."""
        backend = self._engine.backend
        text = ask.text if ask.messages is None else backend.render(ask.messages)
        if text and len(text) > backend.context * _CHARACTERS_PER_TOKEN:
            raise Refused(400, "the prompt is far too long", code="context_length_exceeded")
        tokens = ask.tokens if text is None else backend.encode(text)
        if not tokens:
            raise Refused(400, "the prompt has no tokens", param="prompt", code="invalid_value")
        if max(tokens) >= backend.vocabulary:
            raise Refused(400, f"prompt: {max(tokens)} is not a token of this model's vocabulary")
        wanted = ask.sampling.max_tokens if ask.explicit_limit else 1
        if len(tokens) + wanted > backend.context:
            raise Refused(
                400,
                f"the context has {backend.context} tokens; {len(tokens)} of the prompt and "
                f"{wanted} of the answer are too many",
                param="messages" if ask.messages else "prompt",
                code="context_length_exceeded",
            )
        return tokens, openai.limited(ask, backend.context - len(tokens))

    async def _send(
        self, exchange: Exchange, ask: openai.Ask, answer: _Answer, shape: openai.Shape
    ) -> None:
        self._engine.submit(answer.ticket)
        if ask.stream:
            await self._stream(exchange, ask, answer, shape)
            return
        found = [piece async for pieces in answer.pieces() for piece in pieces]
        if found[-1].scored is not None:
            await exchange.reply(200, shape.scored(found[-1].scored, answer.usage()))
            return
        text = "".join(piece.text for piece in found)
        await exchange.reply(200, shape.whole(text, answer.reason, answer.usage()))

    async def _stream(
        self, exchange: Exchange, ask: openai.Ask, answer: _Answer, shape: openai.Shape
    ) -> None:
        """Sends events; the status waits for the first token, so that a fault gets its own."""
        first = True
        try:
            async for pieces in answer.pieces():
                if first:
                    await exchange.start_events()
                lines = []
                for piece in pieces:
                    if piece.text or piece.reason or first:
                        lines.append(_line(shape.chunk(piece.text, piece.reason, first=first)))
                    first = False
                await exchange.events(lines)
        except Refused as refused:
            if first:
                raise
            await exchange.events([_line(openai.error(refused))], last=True)
            raise
        if ask.include_usage:
            await exchange.events([_line(shape.tail(answer.usage()))])
        await exchange.events(["[DONE]"], last=True)


def _line(value: Mapping[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError, Refused, OSError):
            await task


class _Answer:
    """Follows one answer: its text, its reason to end, its times and its tokens."""

    def __init__(self, ticket: Ticket, metrics: Metrics, began: float) -> None:
        self.ticket = ticket
        self.reason: Reason = "stop"
        self._metrics = metrics
        self._began = began
        self._first = self._last = 0.0
        self._tokens = 0

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """Yields what came since the last look; raises what the engine refused."""
        async for pieces in self.ticket.pieces():
            self._note(pieces)
            if pieces[-1].refused:
                raise pieces[-1].refused
            self.reason = pieces[-1].reason or self.reason
            yield pieces

    def usage(self) -> dict[str, int]:
        """Returns the tokens so far in OpenAI's shape."""
        return openai.usage(len(self.ticket.prompt), self._tokens)

    def _note(self, pieces: Sequence[Piece]) -> None:
        said = [piece for piece in pieces if piece.refused is None and piece.scored is None]
        self._tokens += len(said)
        if pieces[-1].scored is not None:
            self._tokens = self.ticket.sampling.max_tokens
        self._last = pieces[-1].at
        if not self._first:
            self._first = pieces[0].at
            self._metrics.first_token.observe(self._first - self._began)

    def count(self) -> None:
        """Adds this answer to the metrics; once, when it is over."""
        self._metrics.tokens.labels("prompt").inc(len(self.ticket.prompt))
        self._metrics.tokens.labels("completion").inc(self._tokens)
        if self._tokens > 1:
            self._metrics.per_token.observe((self._last - self._first) / (self._tokens - 1))
