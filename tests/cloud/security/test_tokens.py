"""Tokens and their file: what is made, what is stored, what is refused, and a server's view of a file that changes."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from token_helpers import TokenSet, bearer, token_set
from typer.testing import CliRunner

from splitwire.cli import app
from splitwire.codec.errors import AuthRefused, Forbidden, UsageError
from splitwire.runtime_cloud.security import Policy, register
from splitwire.runtime_cloud.security import tokens as store
from splitwire.runtime_cloud.security.audit import Audit
from splitwire.runtime_cloud.security.register import Register
from splitwire.runtime_cloud.security.throttle import BURST, PEERS, PER_SECOND, Throttle


@pytest.fixture
def made(tmp_path: Path) -> TokenSet:
    return token_set(tmp_path)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["cloud", "token", *arguments], catch_exceptions=False)


def header(token: str) -> str:
    return bearer(token)["Authorization"]


def refused(rules: Policy, token: str, peer: str = "10.0.0.1") -> str:
    with pytest.raises(AuthRefused) as error:
        rules.authenticate(header(token), peer)
    return str(error.value)


# ------------------------------------------------------------------ the file


def test_the_file_has_hashes_and_no_secrets(made: TokenSet):
    text = made.path.read_text()
    assert made.path.stat().st_mode & 0o777 == 0o600
    for token in (made.all, made.first, made.expired):
        assert re.fullmatch(r"splitwire_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", token)
        assert token[-43:] not in text
        assert hashlib.sha256(token.encode()).hexdigest() in text
    assert len({made.all, made.first, made.second, made.expired, made.revoked}) == 5


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o606, 0o602])
def test_a_file_that_others_can_read_is_refused(made: TokenSet, mode: int):
    made.path.chmod(mode)
    with pytest.raises(UsageError, match=f"has the mode {mode:o}, so that others may read it; run: chmod 600 "):
        Policy(made.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(version=2), "has version 2"),
        (lambda f: f.update(more=1), "is no file of tokens"),
        (lambda f: f["tokens"][0].update(id="x"), "an id has 12 hex digits"),
        (lambda f: f["tokens"][0].update(sha256="ab"), "sha256 has 64 hex digits"),
        (lambda f: f["tokens"][0].pop("sha256"), "it needs either sha256 or certificate"),
        (lambda f: f["tokens"][0].update(certificate="x"), "it needs either sha256 or certificate"),
        (lambda f: f["tokens"][0].update(actions=["infer", "fly"]), "there is no action 'fly'; there are infer, read"),
        (lambda f: f["tokens"][0].update(actions=[]), "it has no action"),
        (lambda f: f["tokens"][0].update(models=[]), "it has no model"),
        (lambda f: f["tokens"][0].update(name=""), "a name has 1 to 64"),
        (lambda f: f["tokens"][0].update(expires="soon"), "is no file of tokens"),
        (lambda f: f["tokens"][0].update(secret="x"), "is no file of tokens"),
        (lambda f: f["tokens"].append(f["tokens"][0]), "its id is there twice"),
    ],
)
def test_a_wrong_file_is_refused_whole(made: TokenSet, change: Any, message: str):
    file = json.loads(made.path.read_text())
    change(file)
    made.path.write_text(json.dumps(file))
    with pytest.raises(UsageError, match=re.escape(message)):
        store.read_tokens(made.path)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b'{"version":1}', b"[" * 100_000])
def test_a_file_that_is_none(tmp_path: Path, data: bytes):
    path = tmp_path / "tokens.json"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="is no file of tokens"):
        store.read_tokens(path)


def test_no_file_and_a_huge_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="the tokens cannot be read: no such file"):
        Policy(tmp_path / "none.json")
    monkeypatch.setattr(store, "MAX_FILE", 10)
    path = tmp_path / "tokens.json"
    path.write_bytes(b" " * 11)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="so it is no file of tokens"):
        store.read_tokens(path)


def test_changes_at_a_time_lose_nothing(tmp_path: Path):
    path = tmp_path / "tokens.json"

    def add(i: int) -> None:
        with store.changing(path) as entries:
            store.create(entries, f"device {i}")

    threads = [threading.Thread(target=add, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {e.name for e in store.read_tokens(path)} == {f"device {i}" for i in range(12)}
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_a_change_that_fails_changes_nothing(made: TokenSet):
    before = made.path.read_bytes()
    with pytest.raises(UsageError), store.changing(made.path) as entries:
        store.create(entries, "one more")
        store.revoke(entries, "nobody")
    assert made.path.read_bytes() == before


def test_what_ended_long_ago_is_dropped(made: TokenSet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "KEEP_ENDED_S", 0.0)
    with store.changing(made.path):
        pass
    assert {e.name for e in store.read_tokens(made.path)} == {"all", "first", "second"}


# ------------------------------------------------------------------ a running server


def test_a_change_counts_without_a_restart(made: TokenSet):
    told: list[tuple[str, str]] = []
    rules = Policy(made.path)
    rules.told = lambda kind, text: told.append((kind, text))
    assert rules._register is not None
    rules._register._every = 0.0
    caller = rules.authenticate(header(made.first), "")
    rules.check(caller, "infer", "tiny-0")
    with store.changing(made.path) as entries:
        new, token = store.rotate(entries, "first", overlap_s=3600)
    assert rules.authenticate(header(token), "").id == new.id
    assert rules.authenticate(header(made.first), "") == caller  # until its overlap ends
    assert told == [("tokens", "6 tokens were read, 1 new, 0 dropped")]
    with store.changing(made.path) as entries:
        store.revoke(entries, caller.id)
    assert refused(rules, made.first) == "the token was revoked"
    with pytest.raises(AuthRefused, match="revoked"):  # also for a connection that is open
        rules.check(caller, "infer", "tiny-0")
    assert not rules.still_valid(caller)
    assert rules.still_valid(rules.authenticate(header(token), ""))


def test_a_scope_that_changes_counts_for_connections_that_are_open(made: TokenSet):
    rules = Policy(made.path)
    caller = rules.authenticate(header(made.all), "")
    rules.check(caller, "manage", "tiny-0")
    file = json.loads(made.path.read_text())
    file["tokens"][0].update(actions=["infer"], models=["tiny-1"])
    made.path.write_text(json.dumps(file))
    rules.renew()
    rules.tick()
    rules.check(caller, "infer", "tiny-1")
    for action, model in (("manage", "tiny-1"), ("infer", "tiny-0")):
        with pytest.raises(Forbidden):
            rules.check(caller, action, model)
    assert not rules.sees_all(caller)


@pytest.mark.parametrize("damage", ["half", "gone", "open to others"])
def test_a_broken_file_leaves_the_last_tokens_valid(made: TokenSet, damage: str):
    told: list[str] = []
    rules = Policy(made.path)
    rules.told = lambda kind, text: told.append(text)
    whole = made.path.read_bytes()
    if damage == "half":
        made.path.write_bytes(whole[: len(whole) // 2])
    elif damage == "gone":
        made.path.unlink()
    else:
        made.path.chmod(0o644)
    for _ in range(3):
        rules.renew()
        rules.tick()
    assert rules.authenticate(header(made.first), "").name == "first"
    assert refused(rules, made.revoked) == "the token was revoked"
    assert told == ["the file of tokens cannot be read; those that were read last stay valid"] * 3
    made.path.unlink(missing_ok=True)
    store.write_tokens(made.path, ())
    rules.renew()
    assert refused(rules, made.first) == "the token is not valid"
    assert told[-1] == "0 tokens were read, 0 new, 5 dropped"


def test_a_broken_file_is_reported_once(made: TokenSet):
    told: list[str] = []
    tokens = Register(made.path, every=0.0, changed=told.append)
    made.path.chmod(0o644)  # which changes neither its length nor its time
    for _ in range(5):
        tokens.look()
    assert told == ["the file of tokens cannot be read; those that were read last stay valid"]
    made.path.chmod(0o600)
    tokens.look()
    assert told[-1] == "5 tokens were read, 0 new, 0 dropped"


def test_the_file_is_not_read_for_each_request(made: TokenSet, monkeypatch: pytest.MonkeyPatch):
    reads: list[Path] = []
    tokens = Register(made.path, every=3600.0)
    monkeypatch.setattr(register, "read_tokens", reads.append)
    made.path.touch()
    for _ in range(10):
        tokens.look()
    assert reads == []


def test_an_unknown_id_takes_the_same_steps_as_a_wrong_secret(made: TokenSet, monkeypatch: pytest.MonkeyPatch):
    """One hash and one comparison of 32 bytes in constant time, whatever is sent."""
    compared: list[tuple[int, int]] = []
    hashed: list[bytes] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return hmac_compare(a, b)

    def hash_(token: bytes) -> bytes:
        hashed.append(token)
        return store.digest(token)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    monkeypatch.setattr(register, "digest", hash_)
    rules = Policy(made.path)
    wrong = [
        made.all[:-43] + "C" * 43,
        f"splitwire_{'f' * 12}_{'C' * 43}",
        "x" * len(made.all),
        "short",
        made.expired,
        made.all,
    ]
    for token in wrong:
        compared.clear()
        hashed.clear()
        with contextlib.suppress(AuthRefused):
            rules.authenticate(header(token), "")
        assert compared == [(32, 32)]
        assert len(hashed) == 1


def test_the_clock_ends_a_token_and_a_certificate(made: TokenSet, monkeypatch: pytest.MonkeyPatch):
    with store.changing(made.path) as entries:
        _, token = store.create(entries, "short", expires=time.time() + 100)
        store.create(entries, "camera", certificate="camera-7")
    rules = Policy(made.path, certificates=True)
    caller = rules.authenticate(header(token), "")
    camera = rules.authenticate("", "", certificate="camera-7", until=time.time() + 50)
    rules.check(caller, "infer", "tiny-0")
    rules.check(camera, "infer", "tiny-0")
    later = time.time() + 101
    monkeypatch.setattr(time, "time", lambda: later)
    assert refused(rules, token) == "the token has expired"
    with pytest.raises(AuthRefused, match="the token has expired"):
        rules.check(caller, "infer", "tiny-0")
    with pytest.raises(AuthRefused, match="the certificate has expired"):
        rules.check(camera, "infer", "tiny-0")
    assert not rules.may(camera, "infer", "tiny-0")


def test_certificates_with_and_without_a_file(made: TokenSet):
    with store.changing(made.path) as entries:
        store.create(entries, "camera", certificate="camera-7", models=("tiny-0",))
    rules = Policy(made.path, certificates=True)
    until = time.time() + 100
    assert rules.authenticate("", "", certificate="camera-7", until=until).name == "camera"
    with pytest.raises(AuthRefused, match="not one that this server knows"):
        rules.authenticate("", "", certificate="camera-8", until=until)
    # A token, if there is one, decides.
    assert rules.authenticate(header(made.second), "", certificate="camera-7", until=until).name == "second"
    assert refused(rules, "x") == "the token is not valid"
    alone = Policy(certificates=True)
    caller = alone.authenticate("", "", certificate="any", until=until)
    alone.check(caller, "infer", "tiny-0")
    alone.check(caller, "read")
    for action in ("manage", "metrics", "monitor"):
        with pytest.raises(Forbidden, match=f"'any' may not {action}; it may infer, read"):
            alone.check(caller, action)
    with pytest.raises(AuthRefused, match="show a certificate"):
        alone.authenticate("", "")


# ------------------------------------------------------------------ floods


def test_failures_of_an_address_are_limited_and_others_are_not():
    throttle = Throttle()
    assert [throttle.failed("a", 0.0) for _ in range(int(BURST) + 2)] == [False] * int(BURST) + [True, True]
    assert not throttle.failed("b", 0.0)
    assert throttle.failed("a", 1.0)
    assert not throttle.failed("a", 2.0 + 2 / PER_SECOND)


def test_a_network_of_ipv6_is_one_address():
    throttle = Throttle()
    found = [throttle.failed(f"2001:db8::{i:x}", 0.0) for i in range(20)]
    assert found == [False] * int(BURST) + [True] * 10
    assert not throttle.failed("2001:db8:0:1::1", 0.0)


def test_many_addresses_take_little_memory():
    throttle = Throttle()
    for i in range(PEERS + 1000):
        throttle.failed(str(i), 0.0)
    assert len(throttle._peers) == PEERS


def test_a_valid_token_is_taken_from_an_address_that_fails(made: TokenSet, tmp_path: Path):
    record = Audit(tmp_path / "audit.jsonl")
    rules = Policy(made.path, audit=record)
    for i in range(1000):
        refused(rules, f"splitwire_{i:012d}_{'A' * 43}", "10.0.0.1")
    assert rules.authenticate(header(made.all), "10.0.0.1").name == "all"
    refused(rules, "x", "10.0.0.2")
    rules.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines if line.get("peer") == "10.0.0.2"] == ["wrong_token"]  # not hidden
    assert sum(line.get("count", 1) for line in lines) == 1001
    assert len(lines) < 40


# ------------------------------------------------------------------ the record


def test_the_record_is_turned_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from splitwire.runtime_cloud.security import audit

    monkeypatch.setattr(audit, "MAX_BYTES", 1000)
    path = tmp_path / "audit.jsonl"
    record = Audit(path)
    for i in range(100):
        record.event(f"number {i}")
    record.close()
    files = sorted(tmp_path.iterdir())
    assert [f.name for f in files] == ["audit.jsonl", *(f"audit.jsonl.{i}" for i in range(1, 5))]
    numbers = [
        json.loads(line)["text"] for f in (*reversed(files[1:]), files[0]) for line in f.read_text().splitlines()
    ]
    assert numbers == [f"number {i}" for i in range(100 - len(numbers), 100)]
    assert all(f.stat().st_size < 1200 and f.stat().st_mode & 0o777 == 0o600 for f in files)


def test_a_record_that_was_moved_away_is_begun_again(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    record = Audit(path)
    record.event("first")
    path.replace(tmp_path / "moved")
    record.event("second")
    record.close()
    assert "first" in (tmp_path / "moved").read_text()
    assert json.loads(path.read_text())["text"] == "second"


def test_a_record_that_cannot_be_written_stops_nothing(tmp_path: Path):
    with pytest.raises(UsageError, match="the record cannot be written there"):
        Audit(tmp_path / "no" / "audit.jsonl")
    folder = tmp_path / "folder"
    folder.mkdir()
    record = Audit(folder / "audit.jsonl")
    (folder / "audit.jsonl").unlink()
    folder.rmdir()
    record.event("lost")
    record.refused("no_token", peer="10.0.0.1")
    assert record.lost == 2


def test_what_a_stranger_sends_cannot_forge_a_line(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    record = Audit(path)
    record.refused("no_token", peer='1"\n{"outcome":"allowed"}', target="GET /\n\x1b[31m")
    record.close()
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["outcome"] == "refused"
    assert "\x1b" not in line


# ------------------------------------------------------------------ the command


def test_the_command_makes_lists_ends_and_replaces(tmp_path: Path):
    path = tmp_path / "tokens.json"
    file = ("--tokens", str(path))
    shown = run("create", "camera 7", *file, "--model", "tiny-0", "--expires", "90d")
    token = shown.stdout.split()[-1]
    assert "may infer, read for tiny-0; it ends 20" in shown.stdout
    made = json.loads(run("create", "prometheus", *file, "--action", "metrics", "--json").stdout)
    assert made["actions"] == ["metrics"]
    assert made["expires"] is None
    rules = Policy(path)
    assert rules.authenticate(header(token), "").name == "camera 7"
    assert rules.authenticate(header(made["token"]), "").id == made["id"]
    listed = json.loads(run("list", *file, "--json").stdout)
    assert [(e["name"], e["state"]) for e in listed] == [("camera 7", "valid"), ("prometheus", "valid")]
    assert token[-43:] not in run("list", *file).stdout + json.dumps(listed)
    assert abs(store.read_tokens(path)[0].expires - time.time() - 90 * 86400) < 60  # type: ignore[operator]  # it has an end
    new = json.loads(run("rotate", "camera 7", *file, "--overlap", "0s", "--json").stdout)
    assert new["models"] == ["tiny-0"]
    rules.renew()
    assert refused(rules, token) == "the token has expired"
    assert rules.authenticate(header(new["token"]), "").name == "camera 7"
    assert "Revoked" in run("revoke", new["id"], *file).stdout
    rules.renew()
    assert refused(rules, new["token"]) == "the token was revoked"
    certificate = json.loads(run("create", "lift", *file, "--certificate", "lift-3", "--json").stdout)
    assert "token" not in certificate
    assert certificate["certificate"] == "lift-3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "x", "--action", "fly"), "there is no action 'fly'"),
        (("create", "x", "--expires", "soon"), "--expires takes a time, as in 90d"),
        (("create", ""), "a name has 1 to 64"),
        (("revoke", "nobody"), "no valid token has the id or the name 'nobody'; there are all, first, second"),
        (("rotate", "expired"), "no valid token has the id or the name 'expired'"),
    ],
)
def test_the_command_says_what_is_wrong(made: TokenSet, arguments: tuple[str, ...], message: str):
    with pytest.raises(UsageError, match=re.escape(message)):
        run(*arguments, "--tokens", str(made.path))


def test_a_name_that_two_tokens_have_is_not_enough(made: TokenSet):
    run("create", "first", "--tokens", str(made.path))
    with pytest.raises(UsageError, match="2 valid tokens have the name 'first'; say which id: "):
        run("revoke", "first", "--tokens", str(made.path))
