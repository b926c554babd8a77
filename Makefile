# The same words for people and for CI.
.PHONY: install check test smoke bench

install:
	pip install -e '.[test]'

check:
	ruff check harness tests benchmarks
	mypy
	python -m harness check

test:
	pytest

smoke:
	mlflow run . -P study=vgg16_budget -P profile=smoke

bench:
	python benchmarks/bench_sharing.py --profile smoke
