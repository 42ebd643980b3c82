"""Back-off, Retry-After, the budget and the circuit breaker."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing
from email.utils import formatdate

import pytest
from runtime_helpers import canned, good_answer, http_answer

from splitwire.codec.errors import (
    CircuitOpen,
    ConnectTimeout,
    Corrupt,
    ServerBusy,
    TransportError,
    UsageError,
)
from splitwire.codec.wire.reply import REPLY_MEDIA_TYPE
from splitwire.runtime_edge.events import Event
from splitwire.runtime_edge.transport import CircuitBreaker, HttpTransport, Key, Timeouts
from splitwire.runtime_edge.transport.answers import parse_retry_after
from splitwire.runtime_edge.transport.http import client as http_module
from splitwire.runtime_edge.transport.retry import RetryBudget, pause
from splitwire.runtime_edge.waiting import may_pass

FRAME = b"frame" * 100


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses before retries, asked for and not taken."""
    taken: list[float] = []

    def asked(attempt: int, retry_after: float | None = None) -> float:
        taken.append(pause(attempt, retry_after))
        return 0.0

    monkeypatch.setattr(http_module, "pause", asked)
    return taken


def answer_one(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(good_answer())


def test_retry_after():
    assert parse_retry_after("7") == 7
    assert parse_retry_after("0") == 0
    assert 50 < (parse_retry_after(formatdate(time.time() + 60, usegmt=True)) or 0) <= 60
    assert parse_retry_after(formatdate(0, usegmt=True)) == 0
    for value in (None, "", "-1", "1.5", "soon", "٣", "Mon, 99 Foo 2020"):
        assert parse_retry_after(value) is None
    assert parse_retry_after("9" * 5000) is not None  # and no error


def test_full_jitter():
    """The pause is anything from 0 to a bound that doubles, up to 10 s."""
    for attempt, bound in ((1, 0.1), (2, 0.2), (3, 0.4), (8, 10.0), (1000, 10.0)):
        pauses = [pause(attempt) for _ in range(400)]
        assert 0 <= min(pauses) < 0.1 * bound
        assert 0.9 * bound < max(pauses) <= bound
    assert all(3 <= pause(1, 3.0) <= 3.1 for _ in range(100))


def test_retries_are_a_share_of_the_successes():
    budget = RetryBudget(share=0.1, reserve=3)
    assert [budget.spend() for _ in range(5)] == [True, True, True, False, False]
    for _ in range(25):
        budget.earn()
    assert [budget.spend() for _ in range(3)] == [True, True, False]


def state_of(breaker: CircuitBreaker) -> str:
    """Its state; mypy would take the property for constant."""
    return breaker.state


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_circuit():
    clock = Clock()
    events: list[Event] = []
    breaker = CircuitBreaker(failures=3, first_s=1.0, longest_s=4.0, on_event=events.append, clock=clock)
    for _ in range(2):
        breaker.admit("s")
        breaker.failed("s", "nobody listens")
    breaker.succeeded("s")
    for i in range(3):
        assert state_of(breaker) == "closed"
        breaker.admit("s")
        breaker.failed("s", "nobody listens")
        assert breaker.failures == i + 1
    assert state_of(breaker) == "open"
    with pytest.raises(CircuitOpen, match=r"s is not tried: 3 tries in a row failed, .* because nobody listens") as e:
        breaker.admit("s")
    assert e.value.retry_after is not None
    assert 0.5 <= e.value.retry_after <= 1.0

    for least, most in ((1.0, 2.0), (2.0, 4.0), (2.0, 4.0)):  # each failed probe doubles the time, up to longest_s
        clock.now += 4.0
        breaker.admit("s")
        assert state_of(breaker) == "half_open"
        with pytest.raises(CircuitOpen, match="one frame is trying it now"):  # one probe at a time
            breaker.admit("s")
        breaker.failed("s", "nobody listens")
        with pytest.raises(CircuitOpen) as e:
            breaker.admit("s")
        assert e.value.retry_after is not None
        assert least <= e.value.retry_after <= most
    clock.now += 4.0
    breaker.admit("s")
    breaker.forget()  # the probe was given up: another frame may try
    breaker.admit("s")
    breaker.succeeded("s")
    breaker.admit("s")
    states = [event.fields["state"] for event in events]
    assert states == ["open", *["half_open", "open"] * 3, "half_open", "half_open", "closed"]
    assert {event.kind for event in events} == {"circuit"}
    assert events[0].text.startswith("s does not answer: nobody listens; the next try is in ")
    assert events[-1].text == "s answers again"


def test_the_circuit_waits_as_long_as_the_server_asks():
    breaker = CircuitBreaker(failures=1, clock=Clock())
    breaker.failed("s", "it is busy", 20.0)
    with pytest.raises(CircuitOpen) as e:
        breaker.admit("s")
    assert e.value.retry_after == 20.0


def test_a_circuit_that_never_opens_and_wrong_figures():
    breaker = CircuitBreaker(failures=0)
    for _ in range(50):
        breaker.failed("s", "x")
        breaker.admit("s")
    for wrong in ({"failures": -1}, {"first_s": 0.0}, {"first_s": 2.0, "longest_s": 1.0}):
        with pytest.raises(UsageError):
            CircuitBreaker(**wrong)


def test_no_retry_storm(naps: list[float]):
    """A server that is gone: after five tries nothing is sent, whatever the caller asks for; then it is found again."""
    events: list[Event] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    clock = Clock()
    breaker = CircuitBreaker(on_event=events.append, clock=clock)
    with closing(HttpTransport(f"http://127.0.0.1:{port}", breaker=breaker)) as transport:
        errors = []
        for _ in range(200):
            with pytest.raises(TransportError) as caught:
                transport.send(FRAME)
            errors.append(type(caught.value))
        assert breaker.failures == 5
        assert errors[:2] == [ConnectTimeout, ConnectTimeout]
        assert set(errors[2:]) == {CircuitOpen}
        assert transport.breaker.state == "open"
        assert may_pass(caught.value)
        clock.now += 0.5
        with pytest.raises(ConnectTimeout):
            transport.send(FRAME)  # the probe
        assert [e.fields["state"] for e in events] == ["open", "half_open", "open"]
        with socket.create_server(("127.0.0.1", port)) as listener:
            answering = threading.Thread(target=answer_one, args=(listener,))
            answering.start()
            clock.now += 1.0
            assert transport.send(FRAME).attempts == 1
            answering.join(10)
        assert state_of(breaker) == "closed"


def test_a_frame_damaged_on_its_way_is_sent_again(naps: list[float]):
    error = b'{"error": {"code": "corrupt", "message": "its checksum does not match"}}'
    with (
        canned(http_answer(400, error, "application/json"), good_answer()) as server,
        closing(HttpTransport(server.url)) as transport,
    ):
        assert transport.send(FRAME).attempts == 2
    with (
        canned(http_answer(400, error, "application/json")) as server,
        closing(HttpTransport(server.url)) as transport,
        pytest.raises(Corrupt),
    ):
        transport.send(FRAME)
    assert server.requests == 3


@pytest.mark.parametrize("first", [None, 30.0, good_answer()[:-7], http_answer(200, b"\x02damaged", REPLY_MEDIA_TYPE)])
def test_a_key_makes_every_failure_of_the_link_safe(naps: list[float], first: bytes | float | None):
    with (
        canned(first, good_answer(), close_after_each=True) as server,
        closing(HttpTransport(server.url, timeouts=Timeouts(read=0.3))) as transport,
    ):
        assert transport.send(FRAME, Key("camera", "b00t", 7)).attempts == 2
    assert [b'\r\nIdempotency-Key: "camera:b00t:7"\r\n' in head for head in server.heads] == [True, True]
    with (
        canned(first, good_answer(), close_after_each=True) as server,
        closing(HttpTransport(server.url, timeouts=Timeouts(read=0.3))) as transport,
        pytest.raises(TransportError),
    ):
        transport.send(FRAME)
    assert server.requests == 1


def test_closing_ends_a_pause():
    busy = http_answer(503, b"", "text/plain", "Retry-After: 9")
    with canned(busy) as server:
        transport = HttpTransport(server.url)
        threading.Timer(0.2, transport.close).start()
        start = time.monotonic()
        with pytest.raises(ServerBusy):
            transport.send(FRAME)
        assert time.monotonic() - start < 5
