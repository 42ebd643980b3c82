"""Logs, metrics, systemd and outlets of a service: each against what really listens."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitwire.codec.errors import DeviceError, UsageError
from splitwire.runtime_edge.service import logs
from splitwire.runtime_edge.service.metrics import HealthServer, Metrics, loopback_address
from splitwire.runtime_edge.service.outlets import FileOutlet, SocketOutlet, StreamOutlet, load_hook, open_outlet
from splitwire.runtime_edge.service.systemd import Notifier, Watchdog


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    logger = logging.getLogger(logs.ROOT)
    before = logger.handlers, logger.level, logger.propagate
    yield logging.getLogger("splitwire.test")
    logger.handlers, logger.level, logger.propagate = before


def test_json_lines_hold_message_fields_and_traceback(log: logging.Logger) -> None:
    stream = io.StringIO()
    logs.set_up_logs("info", "json", stream)
    log.info("server %s", "gone", extra={"attempts": 3})
    log.debug("not shown")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["message"], first["level"], first["attempts"], first["logger"]) == (
        "server gone", "info", 3, "splitwire.test",
    )  # fmt: skip
    assert first["time"].endswith("Z") and "ValueError" in second["traceback"]


def test_a_text_line_stays_one_line(log: logging.Logger) -> None:
    stream = io.StringIO()
    logs.set_up_logs("warning", "text", stream)
    log.info("not shown")
    log.warning("path %s", "a\nb\x1b[2J", extra={"code": "x"})
    assert stream.getvalue().count("\n") == 1 and "\x1b" not in stream.getvalue() and "code=x" in stream.getvalue()


# Metrics and health


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


def test_metrics_and_health_are_served_on_loopback() -> None:
    metrics, ready = Metrics("pi-4"), threading.Event()
    with HealthServer("127.0.0.1:0", metrics, ready.is_set) as server:
        assert get(server.url + "/readyz")[0] == 503 and get(server.url + "/healthz")[0] == 200
        ready.set()
        metrics.frames.labels("answered").inc(3)
        metrics.age.observe(0.02)
        status, text = get(server.url + "/metrics")
        assert get(server.url + "/readyz")[0] == 200 and get(server.url + "/etc/passwd")[0] == 404
        assert status == 200 and b'splitwire_edge_frames_total{status="answered"} 3.0' in text
        assert b'splitwire_edge_age_seconds_bucket{le="0.025"} 1.0' in text
        with pytest.raises(DeviceError, match="cannot listen on"):
            HealthServer(server.url.removeprefix("http://"), metrics, ready.is_set)


@pytest.mark.parametrize("listen", ["0.0.0.0:9464", "192.168.0.4:80", "9464", "127.0.0.1:x", "127.0.0.1:70000", ""])
def test_metrics_stay_on_loopback(listen: str) -> None:
    with pytest.raises(UsageError, match=r"\[metrics\] listen"):
        loopback_address(listen)


# systemd


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(str(tmp_path / "notify"))
        s.settimeout(5)
        yield s, {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "4000000"}


def test_states_reach_systemd(systemd: tuple[socket.socket, dict[str, str]]) -> None:
    listening, environment = systemd
    notifier = Notifier(environment)
    assert notifier.active and notifier.ready("serving features.13")
    assert listening.recv(4096) == b"READY=1\nSTATUS=serving features.13"
    assert notifier.stopping() and listening.recv(4096) == b"STOPPING=1"
    assert notifier.reloading() and listening.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


def test_without_systemd_nothing_is_sent(tmp_path: Path) -> None:
    assert not Notifier({}).active and not Notifier({}).ready("x") and Notifier({}).watchdog_s == 0
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("x")
    assert Notifier({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog_s == 0


def test_the_watchdog_is_fed_only_while_frames_advance(systemd: tuple[socket.socket, dict[str, str]]) -> None:
    listening, environment = systemd
    frames, idle = [0], [False]
    watchdog = Watchdog(Notifier(environment), lambda: frames[0], lambda: idle[0])
    assert watchdog.interval_s == 2.0
    assert watchdog.tick() and listening.recv(64) == b"WATCHDOG=1"
    assert not watchdog.tick(), "no frame since the last feeding"
    frames[0] += 1
    assert watchdog.tick() and not watchdog.tick()
    idle[0] = True
    assert watchdog.tick(), "nothing to do"


# Outlets


def test_a_stream_gets_lines() -> None:
    reading, writing = os.pipe()
    StreamOutlet(writing).write({"a": 1})
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        assert stream.read() == b'{"a":1}\n'


@pytest.mark.parametrize("keep", [0, 2])
def test_a_file_is_rotated_between_lines(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "results.jsonl"
    outlet = FileOutlet(path, max_bytes=40, keep=keep)
    for i in range(12):
        outlet.write({"number": i})
    outlet.close()
    outlet.close()
    files = [path, *(path.with_name(f"results.jsonl.{i}") for i in range(1, keep + 1))]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    numbers = [json.loads(line)["number"] for file in reversed(files) for line in file.read_text().splitlines()]
    assert numbers == list(range(12))[-len(numbers) :] and all(f.stat().st_size <= 40 for f in files)
    again = FileOutlet(path, max_bytes=40, keep=keep)
    again.write({"number": 12})
    again.close()
    assert json.loads(path.read_text().splitlines()[-1]) == {"number": 12}


def test_a_file_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\[\[outlet\]\] file .*: no such file"):
        open_outlet("file", str(tmp_path / "none" / "x.jsonl"), max_bytes=1, keep=1)


def test_a_socket_is_connected_again_when_its_reader_comes_back(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    outlet = SocketOutlet(path)
    with pytest.raises(OSError):
        outlet.write({"lost": 1})
    for number in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(path)
            listening.listen()
            outlet.write({"number": number})
            connection, _ = listening.accept()
            with connection:
                assert connection.recv(4096) == b'{"number":%d}\n' % number
        Path(path).unlink()
        with pytest.raises(OSError):
            for _ in range(2):  # the first write after a close may still be taken by the kernel
                outlet.write({"lost": number})
    outlet.close()


def test_a_hook_is_a_function_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hooks_of_a_test.py").write_text(
        "seen = []\ndef take(line): seen.append(line)\ndef fail(line): 1 / 0\nnumber = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    open_outlet("hook", "hooks_of_a_test:take", max_bytes=1, keep=1).write({"a": 1})
    assert sys.modules["hooks_of_a_test"].seen == [{"a": 1}]
    with pytest.raises(OSError, match="hook raised ZeroDivisionError"):
        open_outlet("hook", "hooks_of_a_test:fail", max_bytes=1, keep=1).write({})
    for target, says in (
        ("hooks_of_a_test", "expected module:function"),
        ("hooks_of_a_test:none", "AttributeError"),
        ("hooks_of_a_test:number", "is no function"),
        ("no_such_module_at_all:f", "ModuleNotFoundError"),
    ):
        with pytest.raises(UsageError, match=says):
            load_hook(target)


@pytest.mark.parametrize("target", ["broker", "http://broker/topic", "mqtt://broker", "mqtt:///topic"])
def test_a_broker_needs_host_and_topic(target: str) -> None:
    with pytest.raises(UsageError, match="expected mqtt://host:1883/topic"):
        open_outlet("mqtt", target, max_bytes=1, keep=1)


def test_the_file_is_not_readable_by_others(tmp_path: Path) -> None:
    FileOutlet(tmp_path / "r.jsonl", max_bytes=1, keep=1).close()
    assert (tmp_path / "r.jsonl").stat().st_mode & 0o007 == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mosquitto") is None, reason="needs Debian's mosquitto: apt-get install mosquitto")
def test_a_broker_gets_lines_and_those_from_before_it_was_there(tmp_path: Path) -> None:
    from paho.mqtt.client import Client, MQTTMessage
    from paho.mqtt.enums import CallbackAPIVersion

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outlet = open_outlet("mqtt", f"mqtt://127.0.0.1:{port}/cameras/1", max_bytes=1, keep=1)
    outlet.write({"number": 0})  # no broker yet
    settings = tmp_path / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    broker = subprocess.Popen(["mosquitto", "-c", str(settings)], stderr=subprocess.DEVNULL)
    reader, got, enough = Client(CallbackAPIVersion.VERSION2), list[int](), threading.Event()

    def take(_client: Client, _data: object, message: MQTTMessage) -> None:
        got.append(json.loads(message.payload)["number"])
        if len(got) == 2:
            enough.set()

    reader.on_message = take
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                reader.connect("127.0.0.1", port)
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        reader.subscribe("cameras/1", qos=1)
        reader.loop_start()
        outlet.write({"number": 1})
        assert enough.wait(20) and got == [0, 1]
    finally:
        outlet.close()
        reader.disconnect()
        reader.loop_stop()
        broker.terminate()
        broker.wait(10)
