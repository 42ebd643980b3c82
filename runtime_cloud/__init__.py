"""The cloud runtime: it decodes a frame, runs the back graph in ONNX Runtime and makes the reply; and the HTTP server.

    session.py     CloudSession: frame in, outputs out
    graph.py       back.onnx as a plain function
    repository/    the models: loaded, loaded again and unloaded while the server answers
    call.py        Call: a request for an inference
    batching/      the bounded queue, the order of the calls, batches and the compute threads
    admission.py   limits, and the bytes of all bodies
    idempotency.py answers by key, for frames that are sent again
    service.py     what every protocol calls: a request for an inference in, the reply out
    http/          connections and their limits, the routes under /v1, batches, the status of errors
    stream/        the server's half of the stream protocol
    oip/           the Open Inference Protocol, over HTTP and gRPC
    asked.py       what the headers of a request say about its call
    access.py      which models a caller may use
    security/      tokens, certificates, who may do what, the record
    observe/       metrics, events, the live monitor page
    engines/       the process: socket, signals, log (uvicorn)

This package imports `splitwire.codec`, onnxruntime, starlette, uvicorn, prometheus_client and, for gRPC, grpc. It never
imports torch, onnx, scipy, the exporter or the edge runtime.
"""
