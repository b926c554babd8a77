"""Proofs and measurements of the whole library: `python -m benchmarks.coverage`, `bench_engine`."""
