# The same words for people and for CI.
.PHONY: install check test smoke

install:
	pip install -e '.[test]'

check:
	ruff check harness tests .ci
	mypy
	python -m harness check

test:
	pytest

smoke:
	mlflow run . -P study=vgg16_budget -P profile=smoke

