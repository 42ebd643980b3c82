"""The cloud: decode, back graph in ONNX Runtime, reply; and the HTTP server around it.

    session.py     CloudSession: frame in, outputs out
    graph.py       back.onnx as a plain function
    loading.py     the models of a directory, by fingerprint
    admission.py   limits, the bounded queue and the compute threads
    statuses.py    every error of ours as an HTTP status, in one table
    server.py      the routes (Starlette)
    serve.py       the process: socket, signals, log (uvicorn)

Imports `splitwire.codec`, onnxruntime, starlette and uvicorn; never torch, onnx, scipy, the exporter or the edge.
"""
