"""The cloud runtime: it decodes a frame, runs the back graph in ONNX Runtime and makes the reply; and the HTTP server.

    session.py     CloudSession: frame in, outputs out
    graph.py       back.onnx as a plain function
    repository/    loads the models of a directory and finds them by fingerprint
    call.py        Call: a request for an inference
    batching/      the bounded queue, the order of the calls, batches and the compute threads
    admission.py   limits, and the bytes of all bodies
    idempotency.py answers by key, for frames that are sent again
    service.py     what every protocol calls: a request for an inference in, the reply out
    http/          connections and their limits, the routes under /v1, batches, the status of errors
    stream/        the server's half of the stream protocol
    engines/       the process: socket, signals, log (uvicorn)

This package imports `splitwire.codec`, onnxruntime, starlette and uvicorn. It never imports torch, onnx, scipy, the
exporter or the edge runtime.
"""
