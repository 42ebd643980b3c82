"""EdgeSession runs the front here and the back in the cloud: an image in, the outputs of the whole network out."""

from __future__ import annotations

import enum
import itertools
import secrets
import time
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.drift import DriftReference
from splitwire.codec.errors import BadResponse, UsageError
from splitwire.codec.profile import CodecProfile
from splitwire.codec.wire.frame import COMPACT_IDS
from splitwire.codec.wire.reply import Outputs
from splitwire.codec.wire.sizes import Int64Array

from .events import EventSink, ignore
from .findings import MIN_SCORE, Findings, find
from .graph import Float32Array, FrontOutputs, Input, InputType, open_front
from .results import SplitResult, Timings, Where, first_rows
from .transport import Key, Reply, Transport
from .transport.sockets import drop_after_fork

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from .events import EventSink
    from .sources import Source
    from .stream import DriftPart, Fallback, Policy, RatePart, SkipPart, SpoolPart, Stream

    Picture = str | Path | Image | NDArray[Any]

FRAME_ID_MASK = COMPACT_IDS - 1
"""Frame ids count up; after 127, the last that takes one byte in a compact frame, comes 0."""


class State(enum.Enum):
    """The state of an EdgeSession.

    NEW: the graph is loaded. OPEN: in use. CLOSED: it cannot be used again, and its transport is closed too.
    """

    NEW = "new"
    OPEN = "open"
    CLOSED = "closed"


class EdgeSession:
    """The front half, the codec and a transport, as one network.

        with EdgeSession("front.onnx", transport=HttpTransport("http://cloud:8500")) as session:
            result = session.infer(x)

    front: path of front.onnx. transport: the session closes it. op: operating point of the frames; a call can name
    another one; None for the profile's default. threads: threads of one inference; None lets ONNX Runtime choose.
    providers: execution providers of ONNX Runtime, in order of preference, of which the first must start; None for the
    best that this ONNX Runtime offers. on_event: told of providers that do not start, and of engines that are built.
    Raises UsageError, ProfileError, DeviceError (opening the graph), ProfileError (no such operating point).

    Several threads may call `infer`. `run_front`, `encode` and `send` are its stages; each can be called alone.
    """

    def __init__(
        self,
        front: str | Path,
        *,
        transport: Transport,
        op: str | None = None,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        on_event: EventSink = ignore,
    ) -> None:
        self._graph = open_front(front, threads=threads, providers=providers, on_event=on_event)
        self._codec = FeatureCodec(self.profile)
        self._op = self.profile.operating_points[self.profile.point_index(op)].name
        self._transport = transport
        self._elements = sum(t.feature_elements for t in self.profile.tensors)
        self.after_fork()
        drop_after_fork(self)
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._state = State.NEW

    @property
    def profile(self) -> CodecProfile:
        """The CodecProfile of the pair, the same in both halves."""
        return self._graph.profile

    @property
    def drift_reference(self) -> DriftReference | None:
        """What the front's outputs usually look like, for a DriftMonitor; None if front.onnx does not say."""
        return self._graph.drift

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """(B, C, H, W) of the network's input, or (B, H, W, C); None for an axis of any length."""
        return self._graph.input_shape

    @property
    def input_dtype(self) -> InputType:
        """Element type of the network's input."""
        return self._graph.input_dtype

    @property
    def provider(self) -> str:
        """The execution provider that runs the front now, by ONNX Runtime's name; each result names its own."""
        return self._graph.engine.provider

    @property
    def ready(self) -> bool:
        """False while TensorRT builds its engine and the CPU serves meanwhile; else True."""
        return self._graph.engine.ready

    def wait_until_ready(self, seconds: float | None = None) -> bool:
        """Wait until no engine is being built, at most `seconds`; returns `ready`.

        Raises DeviceError if the provider in `providers` did not start; from then on `infer` raises it too.
        """
        return self._graph.engine.wait_until_ready(seconds)

    @property
    def state(self) -> State:
        """NEW, OPEN or CLOSED."""
        return self._state

    def infer(self, x: Input, op: str | None = None) -> SplitResult:
        """Run the whole network on a batch.

        x: preprocessed images, of the shape `input_shape` and the type `input_dtype`; usually (B, C, H, W) float32.
        op: operating point of this frame; None for the session's. If the network takes exactly B images and x has
        fewer, copies of the last image fill the batch. Their outputs are removed; the time and the bytes are those of
        B images.
        Raises ShapeMismatch (another shape; or x is short and an output does not have one row per image),
        NonFiniteFeatures (the front makes NaN or Inf of x), ProfileError (no such operating point), TransportError, or
        the error that the cloud names.
        """
        name = self._op_name(op)  # a wrong name fails before the front runs
        start = time.perf_counter()
        front = self.run_front(x)
        front_done = time.perf_counter()
        frame_id = self.next_frame_id()
        frame = self.encode(front.features, op=name, frame_id=frame_id, sizes=front.sizes)
        encode_done = time.perf_counter()
        reply = self.send(frame, frame_id=frame_id)
        done = time.perf_counter()
        ms = ((front_done - start) * 1e3, (encode_done - front_done) * 1e3, (done - encode_done) * 1e3)
        return self.assemble(front, reply, op=name, images=len(x), frame_bytes=len(frame), ms=ms)

    def infer_image(self, image: Picture, op: str | None = None, *, order: str = "rgb") -> SplitResult:
        """Run the whole network on one picture.

        image: a path, a PIL image, or an array of pixels: (H, W, 3) uint8, or (H, W) uint8 for gray. order: the order
        of the channels in such an array, "rgb" or "bgr" (OpenCV). It does not depend on the order that the network
        takes.
        Raises UsageError if the profile has no preprocessing or the image cannot be read; and what `infer` raises.
        Needs Pillow.
        """
        return self.infer(self.preprocess(image, order=order), op=op)

    def find(
        self,
        result: SplitResult,
        *,
        size: tuple[int, int] | None = None,
        task: str | None = None,
        top: int = 3,
        min_score: float = MIN_SCORE,
    ) -> Findings:
        """Read the outputs for the first image of a result as Classes, Detections, Segments or Values.

        size: (width, height) of the picture; boxes are in its pixels. None: boxes are in pixels of the network's input.
        task: "classification", "detection" or "segmentation"; None for the profile's. top: number of classes.
        min_score: detections with a smaller score are only counted.
        Raises UsageError (an unknown task, or one that does not fit the outputs).
        """
        return find(result.outputs, self.profile, size=size, task=task, top=top, min_score=min_score)

    def preprocess(self, image: Picture, *, order: str = "rgb") -> Input:
        """Turn a picture into a batch of one, as `infer` takes it, by the profile's preprocessing.

        Arguments and errors are those of `infer_image`.
        """
        from splitwire.codec import preprocessing  # imports Pillow, which sessions that take arrays do not need

        how = self.profile.preprocessing
        if how is None:
            raise UsageError(f"model {self.profile.model!r} was exported without preprocessing; give infer() an array")
        if isinstance(image, np.ndarray):
            x = preprocessing.apply(preprocessing.from_array(image, order), how)
        elif order != "rgb":
            raise UsageError(f"order={order!r} goes with an array of pixels; a file or a PIL image knows its own")
        elif isinstance(image, str | Path):
            x = preprocessing.load(image, how)
        else:
            x = preprocessing.apply(image, how)
        return x[np.newaxis]

    def run_front(self, x: Input) -> FrontOutputs:
        """Stage 1: run the front on a batch as `infer` takes it.

        Returns the features (one (B, *shape) float32 array per tensor at the cut), the sizes and the early outputs.
        Raises ShapeMismatch.
        """
        self._use()
        return self._graph.run(self._filled_up(x))

    def encode(
        self,
        features: Sequence[Float32Array],
        *,
        op: str | None = None,
        frame_id: int = 0,
        sizes: Sequence[Int64Array] = (),
    ) -> bytes:
        """Stage 2: encode feature tensors, and the sizes if the pair has any, into a frame.

        Raises ShapeMismatch, NonFiniteFeatures, ProfileError.
        """
        self._use()
        return self._codec.encode(features, op=self._op_name(op), frame_id=frame_id, sizes=sizes)

    def send(self, frame: bytes, *, frame_id: int, key: Key | None = None) -> Reply:
        """Stage 3: send a frame and return the reply. key: as in `Transport.send`.

        Raises BadResponse if the reply is for another frame, and what the transport raises.
        """
        self._use()
        reply = self._transport.send(frame) if key is None else self._transport.send(frame, key)
        if reply.frame_id != frame_id:
            raise BadResponse(f"the server answered frame {reply.frame_id}, this was frame {frame_id}")
        return reply

    def assemble(
        self,
        front: FrontOutputs,
        reply: Reply,
        *,
        op: str | None,
        images: int,
        frame_bytes: int,
        ms: Sequence[float],
        where: Where = "cloud",
    ) -> SplitResult:
        """Stage 4: the result of a batch, from what the front and the back computed.

        images: images of the batch, without the copies that fill it. ms: milliseconds of front, encoder and the wait
        for the reply. where: the back ran. Raises ShapeMismatch if an output does not have one row per image of a batch
        that was filled.
        """
        batch = len(front.features[0])
        return SplitResult(
            outputs=self._in_order(first_rows({**front.early, **reply.outputs}, images, batch)),
            op=self._op_name(op),
            bytes_sent=reply.bytes_sent,
            frame_bytes=frame_bytes,
            bits_per_element=8 * frame_bytes / (images * self._elements),
            timings=Timings(
                front=ms[0],
                encode=ms[1],
                # The clocks differ: a coarse clock in the cloud can report more time than the wait took here.
                network=max(0.0, ms[2] - reply.decode_ms - reply.back_ms),
                decode=reply.decode_ms,
                back=reply.back_ms,
            ),
            attempts=reply.attempts,
            provider=front.provider,
            where=where,
        )

    def after_fork(self) -> None:
        """Count frame ids from a new start, in this process and in each that it forks."""
        self._ids = itertools.count(first_frame_id())

    def next_frame_id(self) -> int:
        """The next frame id. It counts up from a random start, and begins again at 0 (FRAME_ID_MASK)."""
        return next(self._ids) & FRAME_ID_MASK

    def stream(
        self,
        source: Source | Iterable[Any],
        *,
        policy: Policy = "block",
        in_flight: int | None = None,
        rate: RatePart | None = None,
        drift: DriftPart | None = None,
        skip: SkipPart | None = None,
        spool: SpoolPart | None = None,
        wait_s: float = 0.0,
        fallback: Fallback | None = None,
        spool_fallback: bool = False,
        on_event: EventSink | None = None,
    ) -> Stream:
        """Run the whole network on all pictures of a source, several at a time, and return their results in order.

            with session.stream(splitwire.open_source("rtsp://camera/"), policy="drop-oldest") as results:
                for result in results: …                                                 # or: async for

        source: of `open_source`; or an iterable of what `infer_image` takes, or of batches of one as `infer` takes
            them. The stream closes it.
        policy: what happens to a picture when the stages behind cannot take it yet: "block" lets the source wait,
            "drop-oldest" keeps only the newest picture, "drop-newest" drops the new one.
        in_flight: most frames that are sent and not answered, 1 to 256; None: ⌈frames per second · round trip⌉ + 1, as
            measured, at most 8. More than 8 need a transport with as many connections.
        rate: chooses the operating point of each frame. drift: watches the features. skip: decides which frames are
            sent. spool: keeps the frames that cannot be delivered.
        wait_s: seconds for which a frame is sent again while the server is away; then it is spooled, or failed.
        fallback: answers on this device the frames that do not get through, for any TransportError and at once: a
            LoopbackTransport of a CloudSession, where the device holds back.onnx. One frame at a time.
            `SplitResult.where` tells. The caller closes it. spool_fallback: such a frame is spooled too, so that the
            server gets it later.
        on_event: takes events; called in any thread.
        Raises UsageError. Errors of one picture or frame are in its StreamResult.
        """
        self._use()
        from .sources import as_source  # PyAV is loaded by its sources only
        from .stream import Stream

        stream = Stream.start(
            self, as_source(source), policy=policy, in_flight=in_flight, rate=rate, drift=drift, skip=skip,
            spool=spool, fallback=fallback, spool_fallback=spool_fallback, wait_s=wait_s, on_event=on_event,
        )  # fmt: skip
        self._streams.add(stream)
        return stream

    def prepared(self, image: Picture) -> tuple[Input, tuple[int, int] | None]:
        """The input of the front for an item of a source, and the (width, height) of the picture in pixels.

        image: as `infer_image` takes it; or a batch as `infer` takes it, of which there is no size.
        Raises what they raise.
        """
        how = self.profile.preprocessing
        if isinstance(image, np.ndarray) and (how is None or image.ndim == len(self.input_shape)):
            return image, None
        if how is None:
            return self.preprocess(image), None  # raises the error that says so
        from splitwire.codec import preprocessing

        if isinstance(image, np.ndarray):
            return self.preprocess(image), (image.shape[1], image.shape[0])
        if not isinstance(image, str | Path):
            return self.preprocess(image), preprocessing.upright(image, how).size
        with preprocessing.opened(image) as opened:
            return self.preprocess(opened), preprocessing.upright(opened, how).size

    def warm_up(self) -> None:
        """Run the front once on zeros and encode the result at every operating point. Sends nothing.

        Afterwards no frame waits for the compilation of a kernel. Only what this profile needs is compiled.
        """
        front = self.run_front(self._graph.zeros())
        for point in self.profile.operating_points:
            self.encode(front.features, op=point.name, sizes=front.sizes)

    def close(self) -> None:
        """Stop the streams and close the transport. The session cannot be used again. A second call has no effect."""
        if self._state is not State.CLOSED:
            self._state = State.CLOSED
            for stream in list(self._streams):
                stream.close()
            self._transport.close()

    def __enter__(self) -> Self:
        self._use()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _use(self) -> None:
        if self._state is State.CLOSED:
            raise UsageError("this EdgeSession is closed; make a new one")
        self._state = State.OPEN

    def _filled_up(self, x: Input) -> Input:
        """The batch, filled with copies of its last image to the size that the network takes."""
        fixed = self._graph.input_shape[0] if self._graph.input_shape else None
        if fixed is None or np.ndim(x) == 0 or not 0 < len(x) < fixed:
            return x
        return np.concatenate([x, np.repeat(x[-1:], fixed - len(x), axis=0)])

    def _in_order(self, outputs: Outputs) -> Outputs:
        """The outputs in the order of the whole network. If the profile names none, the back has all, in order."""
        order = self.profile.outputs if isinstance(self.profile.outputs, tuple) else ()
        return {name: outputs[name] for name in (*(n for n in order if n in outputs), *outputs)}

    def _op_name(self, op: str | None) -> str:
        """The name of the operating point. Raises ProfileError, with the names that exist."""
        return self._op if op is None else self.profile.operating_points[self.profile.point_index(op)].name


def first_frame_id() -> int:
    """Where the frame ids of a session start: at random, so that two processes do not count alike."""
    return secrets.randbelow(COMPACT_IDS)
