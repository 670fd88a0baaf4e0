# make demo: merge and calibrate real models. make test: all tests. make check: linter and types.
# Each sets up .venv by itself; PYTHON names another interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check clean

demo: .venv/demo-installed
	$(BIN)/magmerge demo magmerge-demo --yes

test: .venv/dev-installed .venv/clip-installed
	$(BIN)/python -m pytest

check: .venv/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv magmerge-demo

.venv/created:
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo-installed: .venv/created pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e '.[demo]'
	touch $@

# The model classes that tests compare with. Apart from the rest: torchvision's operators are built
# for CUDA, and transformers fails where it finds torchvision without them.
.venv/clip-installed: .venv/created tests/clip-classes.txt
	$(BIN)/pip install --quiet --no-deps --upgrade --target .venv/clip -r tests/clip-classes.txt
	touch $@

.venv/dev-installed: .venv/demo-installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[demo,test,dev]'
	touch $@
