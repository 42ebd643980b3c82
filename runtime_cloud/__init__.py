"""The cloud runtime: it decodes a frame, runs the back graph in ONNX Runtime and makes the reply; and the HTTP server.

    session.py     CloudSession: frame in, outputs out
    graph.py       back.onnx as a plain function
    loading.py     loads the models of a directory and finds them by fingerprint
    admission.py   limits, the bounded queue and the compute threads
    statuses.py    the HTTP status of each error, in one table
    server.py      the routes (Starlette)
    batch.py       several frames in one request
    serve.py       the process: socket, signals, log (uvicorn)
    stream/        the server's half of the stream protocol
    idempotency.py answers by key, for frames that are sent again

This package imports `splitwire.codec`, onnxruntime, starlette and uvicorn. It never imports torch, onnx, scipy, the
exporter or the edge runtime.
"""
