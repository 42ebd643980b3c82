"""The Open Inference Protocol, version 2, as both ends need it (docs/oip.md).

tensors.py            the names of element types; elements of type BYTES
messages.py           the messages of gRPC, made from open_inference.binpb; needs protobuf
scan.py               counts the fields of a message before protobuf allocates for them
open_inference.proto  the messages; `make protocol` writes open_inference.binpb from it
"""
