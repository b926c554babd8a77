# The same words for people and for CI.
.PHONY: install check test smoke networks bench bench-full screenshots pins

install:
	pip install -e '.[test]'

check:
	ruff check harness tests benchmarks docs .ci
	mypy
	python -m harness check

test:
	pytest

smoke:
	mlflow run . -P study=vgg16_budget -P profile=smoke

# Every network of torchvision, cut in half and checked: docs/networks.md (over an hour).
networks:
	python -m benchmarks.networks --resume

# Every goal of docs/performance.md, reached or not: benchmarks/results/ (half an hour at most).
bench:
	pip install -e '.[bench]'
	python -m benchmarks.goals

# The same with every network, every setting and the whole study once (hours).
bench-full:
	pip install -e '.[bench]'
	python -m benchmarks.goals --size full

# The pictures of pages in docs/, from a finished study in ./runs; then look at them.
screenshots:
	python docs/screenshots.py vgg16_budget

# The versions of the active environment, in which all tests have passed: constraints.txt.
pins:
	pip install -q -e '.[test,bench]'
	(sed '/^#/!d' constraints.txt; pip freeze --exclude-editable | grep ==) > constraints.new
	mv constraints.new constraints.txt
