"""Which provider runs the front: the choice, what happens where one does not start, and TensorRT's build."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from runtime_helpers import Pair, images

from splitwire.codec.errors import DeviceError, UsageError
from splitwire.codec.shared.providers import choose, nodes_of, provider_options
from splitwire.codec.wire.reply import encode_reply
from splitwire.runtime_edge.engine import CPU, CUDA, TENSORRT, engine, open_engine, short_name
from splitwire.runtime_edge.engine.opening import open_on
from splitwire.runtime_edge.events import Event
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.transport import LoopbackTransport

JETSON = [TENSORRT, CUDA, CPU]
FRONT = Path("front.onnx")


class Input:
    name, shape, type = "x", ["batch", 3, 2, 2], "tensor(uint8)"


class Session:
    """A session that answers with its provider and records what it was fed."""

    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.fed: list[dict[str, Any]] = []

    def get_inputs(self) -> list[Input]:
        return [Input()]

    def run(self, names: list[str] | None, inputs: dict[str, Any]) -> list[str]:
        self.fed.append(inputs)
        return [self.provider]


class Opener:
    """Opens fake sessions; `broken` raises its error; a provider in `held` waits until it is released."""

    def __init__(self, broken: Sequence[str] = (), held: Sequence[str] = ()) -> None:
        self.broken = broken
        self.held = held
        self.release = threading.Event()
        self.calls: list[list[str]] = []
        self.made: list[Session] = []

    def __call__(self, path: Path, providers: Sequence[str], threads: int | None) -> Session:
        self.calls.append(list(providers))
        if providers[0] in self.held:
            assert self.release.wait(20)
        if providers[0] in self.broken:
            raise DeviceError(f"execution provider {providers[0]!r} did not start")
        self.made.append(Session(providers[0]))
        return self.made[-1]


def ran(opened: engine.Engine) -> str:
    outputs, provider = opened.run(["y"], {"x": np.zeros(1)})
    assert outputs == [provider]
    return provider


@pytest.mark.parametrize(
    ("offered", "named", "order", "forced"),
    [
        (["AzureExecutionProvider", CPU], None, (CPU,), False),
        ([CUDA, CPU], None, (CUDA, CPU), False),
        (JETSON, None, (TENSORRT, CUDA, CPU), False),
        (JETSON, [], (TENSORRT, CUDA, CPU), False),
        (JETSON, [CUDA], (CUDA,), True),
        (JETSON, [CPU, CUDA], (CPU, CUDA), True),
        (["DmlExecutionProvider", CPU], None, (CPU,), False),
        (["DmlExecutionProvider", CPU], ["DmlExecutionProvider"], ("DmlExecutionProvider",), True),
    ],
)
def test_choice(offered: list[str], named: list[str] | None, order: tuple[str, ...], forced: bool):
    choice = choose(offered, named)
    assert (choice.order, choice.forced) == (order, forced)


def test_a_named_provider_that_is_not_offered_is_one_line():
    with pytest.raises(DeviceError, match=r"^execution provider 'CUDAExecutionProvider' is not here; .* has A, B$"):
        choose(["A", "B"], [CUDA])
    with pytest.raises(UsageError, match="named once"):
        choose([CPU], [CPU, CPU])
    with pytest.raises(DeviceError, match="'CUDAExecutionProvider' is not here"):
        open_engine(FRONT, providers=[CUDA], offered=[CPU], opener=Opener())


def test_names_for_people():
    assert [short_name(p) for p in JETSON] == ["TensorRT", "CUDA", "CPU"]


def test_the_next_one_runs_where_the_best_does_not_start_and_the_owner_is_told():
    events: list[Event] = []
    opener = Opener(broken=[CUDA])
    opened = open_engine(FRONT, offered=[CUDA, CPU], opener=opener, on_event=events.append)
    assert opener.calls == [[CUDA, CPU], [CPU]]
    assert (opened.provider, ran(opened), opened.ready) == (CPU, CPU, True)
    said = "CUDA does not run the front: execution provider 'CUDAExecutionProvider' did not start"
    assert opened.passed_over == (said,)
    assert [(e.kind, e.text, e.fields["provider"]) for e in events] == [("provider_unavailable", said, CUDA)]


def test_a_named_provider_never_gives_way():
    opener = Opener(broken=[CUDA])
    with pytest.raises(DeviceError, match="did not start"):
        open_engine(FRONT, providers=[CUDA, CPU], offered=JETSON, opener=opener)
    assert opener.calls == [[CUDA, CPU]]


def test_no_provider_starts():
    with pytest.raises(DeviceError, match=f"{CPU!r} did not start"):
        open_engine(FRONT, offered=[CPU], opener=Opener(broken=[CPU]))


def test_the_cpu_serves_while_tensorrt_builds(monkeypatch: pytest.MonkeyPatch):
    """With a line at once and every PROGRESS_S; then TensorRT serves, after a first run on zeros."""
    monkeypatch.setattr(engine, "PROGRESS_S", 0.02)
    events: list[Event] = []
    several = threading.Event()

    def take(event: Event) -> None:
        events.append(event)
        if len(events) == 3:
            several.set()

    opener = Opener(held=[TENSORRT])
    opened = open_engine(FRONT, offered=JETSON, opener=opener, on_event=take)
    assert several.wait(20)
    assert {e.kind for e in events} == {"engine_building"}
    assert "TensorRT builds its engine: 0 s so far; the CPU serves meanwhile" in {e.text for e in events}
    assert (opened.ready, opened.provider, ran(opened)) == (False, CPU, CPU)
    assert opened.wait_until_ready(0.01) is False
    opener.release.set()
    assert opened.wait_until_ready(20) is True
    assert (opened.provider, ran(opened)) == (TENSORRT, TENSORRT)
    assert opener.calls == [[CPU], [TENSORRT, CUDA, CPU]]
    assert events[-1].kind == "engine_ready"
    (first, _) = opener.made[-1].fed
    assert (first["x"].shape, first["x"].dtype, first["x"].any()) == ((1, 3, 2, 2), np.uint8, False)


@pytest.mark.parametrize(("broken", "ends_on"), [([TENSORRT], CUDA), ([TENSORRT, CUDA], CPU)])
def test_where_tensorrt_does_not_start_the_next_one_serves(broken: list[str], ends_on: str):
    events: list[Event] = []
    opened = open_engine(FRONT, offered=JETSON, opener=Opener(broken=broken), on_event=events.append)
    assert opened.wait_until_ready(20) is True
    assert (opened.provider, ran(opened)) == (ends_on, ends_on)
    assert [e.fields["provider"] for e in events if e.kind == "provider_unavailable"] == broken
    assert len(opened.passed_over) == len(broken)


def test_a_demanded_tensorrt_that_does_not_start_ends_the_run():
    opened = open_engine(FRONT, providers=[TENSORRT], offered=JETSON, opener=Opener(broken=[TENSORRT]))
    with pytest.raises(DeviceError, match=r"TensorRT does not run the front: .* did not start"):
        opened.wait_until_ready(20)
    with pytest.raises(DeviceError, match="TensorRT does not run the front"):
        ran(opened)


def test_whatever_a_library_raises_is_one_line():
    class Odd(Opener):
        def __call__(self, path: Path, providers: Sequence[str], threads: int | None) -> Session:
            if providers[0] == TENSORRT:
                raise RuntimeError("libnvinfer.so.10: cannot open shared object file\nat line 3")
            return super().__call__(path, providers, threads)

    opened = open_engine(FRONT, offered=[TENSORRT, CPU], opener=Odd())
    opened.wait_until_ready(20)
    said = "TensorRT does not run the front: RuntimeError: libnvinfer.so.10: cannot open shared object file"
    assert opened.passed_over == (said,)


def test_options_of_tensorrt(tmp_path: Path):
    folder = tmp_path / "tensorrt"
    options = provider_options(TENSORRT, {"SPLITWIRE_CACHE_DIR": str(tmp_path)})
    assert options == {
        "trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1", "trt_timing_cache_path": str(folder),
    }  # fmt: skip
    assert folder.is_dir()
    (tmp_path / "file").touch()
    assert provider_options(TENSORRT, {"SPLITWIRE_CACHE_DIR": str(tmp_path / "file")}) == {}
    assert provider_options(CUDA) == {}


def test_a_provider_that_takes_no_node_is_not_reported(pair: Pair):
    """ONNX Runtime would list it as first and run everything on the CPU. Azure's takes no node of ours."""
    azure = "AzureExecutionProvider"
    if azure not in ort.get_available_providers() or nodes_of(recorded(pair.front), CPU) is None:
        pytest.skip("this ONNX Runtime has no such provider, or does not say which node runs where")
    with pytest.raises(DeviceError, match=r"Azure takes no node of front\.onnx"):
        open_on(pair.front, [azure, CPU], None)
    assert nodes_of(recorded(pair.front), CPU) == 2
    assert nodes_of(recorded(pair.front), azure) == 0


def recorded(front: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return ort.InferenceSession(str(front), options, providers=[CPU])


def loopback(handler: Callable[[int], bytes]) -> LoopbackTransport:
    return LoopbackTransport(lambda frame: handler(int.from_bytes(frame[16:20], "little")))


def test_a_session_and_each_result_name_the_provider(pair: Pair):
    def answer(frame_id: int) -> bytes:
        return encode_reply({"logits": np.zeros((1, 5), np.float32)}, frame_id=frame_id, decode_ms=0, back_ms=0)

    with EdgeSession(pair.front, transport=loopback(answer)) as session:
        assert (session.provider, session.ready, session.wait_until_ready(0)) == (CPU, True, True)
        assert session.infer(images()).provider == CPU
