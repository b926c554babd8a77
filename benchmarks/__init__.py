"""Proofs and measurements of the whole library: `python -m benchmarks.networks`, `bench_engine`."""
