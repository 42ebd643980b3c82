"""Every procedure of gRPC, with every kind of credentials that must not do."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime_helpers import Pair, make_pair, serving, until
from token_helpers import INTERNAL, Authority, TokenSet, bearer, token_set

import splitwire
from splitwire.runtime_cloud.oip import GrpcOptions
from splitwire.runtime_cloud.security import Security
from splitwire.runtime_cloud.security.actions import OPEN, RPCS


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    return token_set(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def target(pair: Pair, tokens: TokenSet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("grpc")
    second = make_pair(tmp_path_factory.mktemp("second"), seed=1)
    targets: queue.Queue[str] = queue.Queue()
    options = GrpcOptions(port=0, on_listen=targets.put)
    with serving(pair, second, security=Security(tokens=tokens.path), grpc=options):
        yield targets.get(timeout=20)


def rpc(target: str, name: str, headers: dict[str, str], request: bytes = b"") -> tuple[str, str]:
    """(status, text) of a call."""
    import grpc

    metadata = [(k.lower(), v) for k, v in headers.items()]
    path = f"/inference.GRPCInferenceService/{name}"
    with grpc.insecure_channel(target) as channel:
        try:
            if name == "ModelStreamInfer":
                list(channel.stream_stream(path)(iter([request]), timeout=20, metadata=metadata))
            else:
                channel.unary_unary(path)(request, timeout=20, metadata=metadata)
        except grpc.RpcError as e:
            return e.code().name, e.details()
    return "OK", ""


def test_every_procedure_has_an_action(pair: Pair):
    pytest.importorskip("grpc")
    from splitwire.runtime_cloud.oip.grpc_port import GrpcApi, procedures

    with serving(pair) as served:
        inference: Any = type("Inference", (), {"service": served.api.service})()
        assert {*procedures(GrpcApi(inference)), "ModelStreamInfer"} == set(RPCS)
    assert {name for name, rule in RPCS.items() if rule.action == OPEN} == {"ServerLive", "ServerReady"}


def test_every_procedure_without_credentials_that_do(target: str, tokens: TokenSet, pair: Pair):
    for name, rule in RPCS.items():
        for why, headers in tokens.useless.items():
            if why == "not ascii":
                continue  # metadata has to be ASCII
            status, text = rpc(target, name, headers)
            assert status == ("OK" if rule.action == OPEN else "UNAUTHENTICATED"), (name, why, text)
            for word in (*INTERNAL, splitwire.__version__, pair.profile.model):
                assert word not in text


def test_every_procedure_with_the_token_of_another_model(target: str, tokens: TokenSet):
    pytest.importorskip("grpc")
    from splitwire.codec.wire.oip.messages import message

    requests = {
        "ModelReady": message("ModelReadyRequest")(name="tiny-0"),
        "ModelMetadata": message("ModelMetadataRequest")(name="tiny-0"),
        "ModelConfig": message("ModelConfigRequest")(name="tiny-0"),
        "ModelStatistics": message("ModelStatisticsRequest")(name="tiny-0"),
        "ModelInfer": message("ModelInferRequest")(model_name="tiny-0"),
        "RepositoryModelLoad": message("RepositoryModelLoadRequest")(model_name="tiny-0"),
        "RepositoryModelUnload": message("RepositoryModelUnloadRequest")(model_name="tiny-0"),
    }
    assert set(RPCS) - set(requests) == {
        "ServerLive", "ServerReady", "ServerMetadata", "RepositoryIndex", "ModelStreamInfer",
    }  # fmt: skip
    for name, request in requests.items():
        data = request.SerializeToString()
        status, text = rpc(target, name, bearer(tokens.second), data)
        assert status == "PERMISSION_DENIED", (name, text)
        assert rpc(target, name, bearer(tokens.all), data)[0] not in ("PERMISSION_DENIED", "UNAUTHENTICATED")


def test_grpc_with_certificates_that_are_renewed(pair: Pair, tmp_path: Path):
    grpc = pytest.importorskip("grpc")
    pytest.importorskip("trustme")
    authority, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    cert, key, ca = tmp_path / "s.crt", tmp_path / "s.key", tmp_path / "clients.pem"

    def install(by: Authority) -> None:
        issued = by.issue("grpc-server")
        for source, target in ((issued[0], cert), (issued[1], key), (by.ca, ca)):
            target.write_bytes(source.read_bytes())

    def live(by: Authority, *, client: str = "", name: str = "ServerMetadata") -> str:
        pair_of = [p.read_bytes() for p in reversed(by.issue(client))] if client else [None, None]
        credentials = grpc.ssl_channel_credentials(by.ca.read_bytes(), *pair_of)
        with grpc.secure_channel(targets[0], credentials) as channel:
            try:
                channel.unary_unary(f"/inference.GRPCInferenceService/{name}")(b"", timeout=20)
            except grpc.RpcError as e:
                return str(e.code().name)
        return "OK"

    install(authority)
    targets: list[str] = []
    options = GrpcOptions(port=0, certificate=cert, key=key, client_ca=ca, on_listen=targets.append)
    security = Security(tls_cert=cert, tls_key=key, client_ca=ca)
    with serving(pair, security=security, grpc=options):
        assert live(authority, client="camera") == "OK"
        assert live(authority, client="camera", name="RepositoryModelUnload") == "PERMISSION_DENIED"
        assert live(authority) == "UNAVAILABLE"
        assert live(new, client="camera") == "UNAVAILABLE"
        install(new)
        until(lambda: live(new, client="camera") == "OK")
        assert live(authority, client="camera") == "UNAVAILABLE"
