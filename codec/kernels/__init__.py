"""Every compiled function of the project, and nothing else.

Kernels take arrays and scalars, return arrays or a status code, never allocate per element and never raise; the thin
layers above (quantizer.py, entropy/) validate, allocate and raise. `policy.kernel` is the one way to compile.
"""
