"""Every compiled function of the project, and nothing else.

Kernels take arrays and scalars and return arrays or a status code. They never allocate per element and never raise. The
layers above (quantizer.py, entropy/) validate, allocate and raise. `kernel` of compilation/policy.py is the only way to
compile.
"""
