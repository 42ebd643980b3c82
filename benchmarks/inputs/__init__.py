"""The tensors and pictures that the benchmarks measure on."""
