"""The benchmarks: fixed seeds, warm-up not counted, medians, and every figure beside a peer measured in the same run.

    python -m benchmarks.run                        the five marked ·, into build/bench/ (`make bench`)
    speed/     bytes and times
      python -m benchmarks.speed.codec              · the codec beside bit-pack + zstd (`make bench-codec`)
      python -m benchmarks.speed.transform          · coder 5 beside the other coders: elements per second
      python -m benchmarks.speed.startup            · the first tensor of a new process, and memory
      python -m benchmarks.speed.first_inference    · the first answer of a new edge process, idle CPU and memory
      python -m benchmarks.speed.export_times       an export, stage by stage (`make bench-export`)
      python -m benchmarks.speed.history            ratios beside those of the last release (`make bench-history`)
    cloud/     the server
      python -m benchmarks.cloud.batching           batches, order, overload (`make bench-batching`)
    quality/   error and damage at equal rate or bytes
      python -m benchmarks.quality.ecsq             · entropy-constrained and uniform quantizers: squared error
      python -m benchmarks.quality.coefficient_bytes  where payload bytes of coefficients go
      python -m benchmarks.quality.task             · the effect of a smaller squared error on the task
      python -m benchmarks.quality.transform_points transform points beside today's and the paper's
                                                    (`make transform-points`; its parts are in points/)
    networks/  many networks
      python -m benchmarks.networks.sweep           torchvision's networks, exported and cut (`make sweep-models`)
      python -m benchmarks.networks.small           trains small networks on Fashion-MNIST (`make small-networks`)
      python -m benchmarks.networks.field           ONNX files from PyPI packages (`make field`)
      python -m benchmarks.networks.cuts            the cuts that the recipes suggest (`make cuts`)
      python -m benchmarks.networks.names           leaf modules whose path names a cut
    inputs/    the tensors and pictures that these measure on
    python -m benchmarks.reports                    the evaluations under docs/results/ (`make reports`)
    python -m benchmarks.readme                     the figures of README.md (`make readme`)

Figures are for one core and depend on the machine. Only ratios can be compared between machines.
"""
