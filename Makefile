# make demo: merge and calibrate real models. make check: linter and types.
# make test: the quick tests, in minutes. make test-all: these and the slow ones, as in CI.
# Each sets up .venv by itself; PYTHON names another interpreter (3.11 or newer).
# JOBS says how many processes test.
PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
# One thread for each process, or they wait for each other.
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: demo test test-all check clean

demo: .venv/demo-installed
	$(BIN)/magmerge demo magmerge-demo --yes

test: .venv/dev-installed .venv/clip-installed
	MAGMERGE_QUICK_TESTS=1 $(PYTEST) -m 'not slow'

test-all: .venv/dev-installed .venv/clip-installed
	$(PYTEST)

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
