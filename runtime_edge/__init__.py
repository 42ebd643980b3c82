"""The edge runtime: it runs the front graph in ONNX Runtime, encodes the features, sends the frame and reads the reply.

    session.py     EdgeSession: front → encode → send → outputs, one method per stage
    results.py     SplitResult and Timings: outputs, bytes and times of one batch
    graph.py       front.onnx as a plain function
    engine/        on which execution provider it runs
    transport/     the Transport protocol, and transports over HTTP and within this process
    sources/       pictures, watched folders, videos, cameras, standard input
    stream/        the frames of a source, several at a time, results in order
    waiting.py     repeats a call while the server is busy or away
    events.py      what the runtime tells its owner beside results
    findings.py    outputs as classes, boxes or segments; drawing.py draws them onto the picture
    doctor/        looks at the device and its server, and says what to do
    device.py      measures how fast this machine is

This package imports `splitwire.codec`, onnxruntime and Pillow. It never imports torch, onnx, scipy, the exporter
or the cloud runtime.
"""
