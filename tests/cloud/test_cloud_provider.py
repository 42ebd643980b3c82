"""The provider that runs the back: chosen, demanded, passed over, and named. Sessions and providers are fakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import onnxruntime as ort
import pytest
from runtime_helpers import Pair, serving

from splitwire.codec.errors import DeviceError
from splitwire.codec.shared.providers import CPU, CUDA, TENSORRT
from splitwire.commands.cloud.serve import serve
from splitwire.runtime_cloud.batching import measure
from splitwire.runtime_cloud.graph import BackGraph, open_back, open_on
from splitwire.runtime_cloud.session import CloudSession

OFFERED = [TENSORRT, CUDA, CPU]


class Opener:
    """Opens everything on the CPU, except on providers that are broken; remembers what it was asked for."""

    def __init__(self, *broken: str) -> None:
        self.broken = broken
        self.asked: list[list[str]] = []

    def __call__(self, path: Path, providers: Sequence[str], threads: int | None) -> Any:
        self.asked.append(list(providers))
        if providers[0] in self.broken:
            raise DeviceError("no driver")
        return ort.InferenceSession(path, providers=[CPU])


def opened(pair: Pair, opener: Opener, **options: Any) -> BackGraph:
    return open_back(pair.back, opener=opener, **{"offered": OFFERED, **options})


def test_a_gpu_is_used_where_it_starts(pair: Pair):
    opener = Opener()
    graph = opened(pair, opener)
    assert (graph.provider, graph.passed_over, opener.asked) == (CUDA, (), [[CUDA, CPU]])


def test_the_cpu_serves_where_the_gpu_does_not_start(pair: Pair):
    graph = opened(pair, Opener(CUDA))
    assert graph.provider == CPU
    assert graph.passed_over == ("CUDA does not run the back: no driver",)


def test_a_provider_that_is_demanded_starts_or_nothing_does(pair: Pair):
    assert opened(pair, Opener(), providers=[TENSORRT, CUDA]).provider == TENSORRT
    with pytest.raises(DeviceError, match="no driver"):
        opened(pair, Opener(TENSORRT), providers=[TENSORRT, CUDA])
    with pytest.raises(DeviceError, match=r"'CUDAExecutionProvider' is not here; .* has CPU"):
        opened(pair, Opener(), providers=[CUDA], offered=[CPU])


def test_a_provider_that_takes_no_node_does_not_run_the_back(pair: Pair):
    azure = "AzureExecutionProvider"
    if azure not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no provider that takes no node")
    if not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
        pytest.skip("this ONNX Runtime does not tell which provider takes which node")
    with pytest.raises(DeviceError, match=r"Azure takes no node of back\.onnx, so the graph would run elsewhere"):
        open_on(pair.back, [azure, CPU], None)


def test_tensorrt_sees_the_largest_batch_first(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    """It builds an engine for the range of shapes that it has seen, and a build takes minutes."""
    session = CloudSession(pair.back)
    session.warm_up()
    sizes: list[int] = []
    run_back = session.run_back

    def counted(tensors: Any, *others: Any) -> Any:
        sizes.append(len(tensors[0]))
        return run_back(tensors, *others)

    session.run_back = counted  # type: ignore[method-assign, assignment]  # as before, and it counts
    monkeypatch.setattr(CloudSession, "provider", TENSORRT)
    measure(session)
    assert sizes[:4] == [32, 1, 1, 2]


def test_the_server_names_the_provider(pair: Pair):
    with serving(pair) as server:
        (model,) = httpx.get(server.url + "/v1/models").json()["models"]
    assert model["provider"] == "CPU"


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this ONNX Runtime has CUDA")
def test_the_command_demands_a_provider(pair: Pair):
    with pytest.raises(DeviceError, match="execution provider 'cuda' is not here"):
        serve(pair.back, provider=["cuda"], port=0)
