"""From a trained network to front.onnx and back.onnx: prepare → cut → calibrate → write.

Only this package and models use torch, onnx and onnx_ir. `export.export_pair` is the whole pipeline. The packages are
its parts: network, cutting, calibration, points, pair, and planning for an automatic cut. They import codec and
codec.design, but never a runtime or models.
"""
