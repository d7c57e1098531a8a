"""The decoding thread: fairness, limits, stop texts, faults."""

import asyncio
import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.fleet.runtimes.serve.engine import Engine, Sampling, StopFilter, Ticket
from lockgate.fleet.runtimes.serve.exchange import Refused


@dataclass
class FakeDecoding:
    backend: "FakeBackend"
    name: int
    left: int

    def step(self):
        self.backend.gate.wait(5)
        self.backend.log.append(self.name)
        if self.name == 666:
            raise RuntimeError("bad weights")
        self.left -= 1
        return ("x", False) if self.left else ("", True)


@dataclass
class FakeBackend:
    """A model whose prompt `(name, length)` says how many tokens its answer has."""

    context: int = 1000
    vocabulary: int = 1000
    temperature: float = 0.0
    log: list = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def render(self, messages):
        return ""

    def encode(self, text):
        return [1]

    def start(self, prompt, sampling):
        if prompt[0] == 404:
            raise ValueError("no memory")
        return FakeDecoding(self, *prompt)


def run(scenario, *, slots=2, queue=100, closed_gate=False):
    backend = FakeBackend()
    if not closed_gate:
        backend.gate.set()

    async def whole():
        engine = Engine(backend, slots=slots, queue=queue)
        engine.open()
        try:
            return await asyncio.wait_for(scenario(engine, backend), 10)
        finally:
            backend.gate.set()
            engine.close()

    return asyncio.run(whole())


def ticket(engine, name, length, **sampling):
    made = Ticket((name, length), Sampling(max_tokens=sampling.pop("max_tokens", 100), **sampling))
    engine.submit(made)
    return made


async def read(made):
    return [piece async for pieces in made.pieces() for piece in pieces]


def test_running_answers_take_turns_token_by_token():
    async def scenario(engine, backend):
        tickets = [ticket(engine, name, 5) for name in (1, 2, 3)]
        backend.gate.set()
        for made in tickets:
            assert (await read(made))[-1].reason == "stop"
        return backend.log

    log = run(scenario, slots=3, closed_gate=True)
    counts = [log[:9].count(name) for name in (1, 2, 3)]
    assert max(counts) - min(counts) <= 2


def test_a_full_queue_refuses_with_503():
    async def scenario(engine, backend):
        tickets = [ticket(engine, 1, 3)]
        while engine.waiting:
            await asyncio.sleep(0.001)
        tickets += [ticket(engine, name, 3) for name in (2, 3)]
        with pytest.raises(Refused) as caught:
            ticket(engine, 4, 3)
        backend.gate.set()
        for made in tickets:
            await read(made)
        return caught.value

    refused = run(scenario, slots=1, queue=2, closed_gate=True)
    assert (refused.status, refused.retry_after) == (503, 1)


def test_max_tokens_ends_with_length():
    async def scenario(engine, _):
        return await read(ticket(engine, 1, 50, max_tokens=4))

    pieces = run(scenario)
    assert [piece.reason for piece in pieces] == [None, None, None, "length"]


def test_a_stop_text_ends_the_decoding_too():
    async def scenario(engine, backend):
        pieces = await read(ticket(engine, 1, 50, stop=("xxx",)))
        await asyncio.sleep(0.02)
        return pieces, backend.log

    pieces, log = run(scenario)
    assert "".join(piece.text for piece in pieces) == ""
    assert pieces[-1].reason == "stop"
    assert len(log) == 3


@pytest.mark.parametrize("name", [666, 404])
def test_a_fault_ends_its_own_request_alone(name):
    async def scenario(engine, _):
        bad, good = ticket(engine, name, 3), ticket(engine, 1, 3)
        return (await read(bad))[-1].refused, await read(good)

    refused, good = run(scenario)
    assert refused.status == 500
    assert good[-1].reason == "stop"


def test_a_cancelled_ticket_frees_its_slot():
    async def scenario(engine, _):
        first = ticket(engine, 1, 10**9, max_tokens=10**9)
        second = ticket(engine, 2, 2)
        await asyncio.sleep(0.02)
        assert engine.waiting == 1
        first.cancel()
        return await read(second)

    assert run(scenario, slots=1)[-1].reason == "stop"


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_stop_filter_says_the_same_however_text_is_cut(text, stops):
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    sieve, said, stopped = StopFilter(stops), "", False
    for char in text:
        part, stopped = sieve.feed(char)
        said += part
        if stopped:
            break
    if not stopped:
        said += sieve.rest()
    assert stopped == bool(found)
    assert text.startswith(said)
    if found:
        first = min(ends)
        assert len(said) < first
    else:
        assert said == text
