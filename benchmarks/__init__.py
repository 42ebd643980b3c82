"""Benchmarks are code: fixed seeds, warm-up apart, medians, every figure beside a peer measured in the same run.

    python -m benchmarks.run            everything below, into build/bench/
    python -m benchmarks.codec          the codec beside bit-pack + zstd (`make bench-codec`)
    python -m benchmarks.ecsq           error at equal rate: entropy-constrained against uniform
    python -m benchmarks.task           what squared error is worth to the task
    python -m benchmarks.startup        a new process's first tensor, and memory

Figures are per core and depend on the machine; only the ratios travel.
"""
