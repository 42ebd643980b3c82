"""The edge: front graph in ONNX Runtime, encode, send, outputs.

    session.py     EdgeSession: front → encode → send → outputs, each a method
    graph.py       front.onnx as a plain function
    transport.py   what a session talks to: the Transport protocol, over HTTP or within this process
    answers.py     what a server's answer means: a reply, or one of our errors
    wire.py        sockets that count their bytes

Imports `splitwire.codec`, onnxruntime and httpx; never torch, onnx, scipy, the exporter or the cloud.
"""
