"""The benchmarks: fixed seeds, warm-up not counted, medians, and every figure beside a peer measured in the same run.

    python -m benchmarks.run            the five below, into build/bench/ (`make bench`)
    python -m benchmarks.codec          the codec beside bit-pack + zstd (`make bench-codec`)
    python -m benchmarks.transform      coder 5 beside the other coders: elements per second
    python -m benchmarks.ecsq           error at equal rate: entropy-constrained and uniform quantizers
    python -m benchmarks.task           the effect of a smaller squared error on the task
    python -m benchmarks.startup        the first tensor of a new process, and memory

Figures are for one core and depend on the machine. Only ratios can be compared between machines.
"""
