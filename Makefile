# make demo: merge and calibrate real models. make check: linter and types.
# make test: the quick tests, in minutes. make test-all: these and the slow ones, as in CI.
# make docs: the documentation site, in site/. make nightly: kills and fuzzing. make audit: known vulnerabilities. make verified: install by hashes.
# Each sets up .venv by itself; PYTHON names another interpreter (3.11 or newer).
# JOBS says how many processes test.
PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
# One thread for each process, or they wait for each other.
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: demo test test-all check docs verified hashes audit nightly clean

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

# Every warning is an error: links that lead nowhere, pages that the navigation lacks.
docs: .venv/docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# All that is installed is what was tested, by SHA-256; magmerge itself is built from this folder.
verified: .venv/created
	$(BIN)/pip install --quiet --require-hashes --no-deps -r constraints-hashes.txt
	$(BIN)/pip install --quiet --no-deps -e .

# After a change of constraints.txt. The CPU build of torch is not on PyPI: put its line back.
hashes: .venv/created
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile constraints.txt --generate-hashes --no-deps --no-annotate -o constraints-hashes.txt

# Known vulnerabilities of what is pinned. It fails where the advisories cannot be had, too.
audit: .venv/created
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r constraints-hashes.txt

# Kills, fuzzing (guided by coverage where atheris is installed), kernels under sanitizers.
nightly: .venv/dev-installed
	$(BIN)/python -W ignore -m scripts.nightly_kills --points 300 --write
	$(BIN)/python -W ignore -m fuzz.run --inputs 500000 --write
	$(BIN)/python -W ignore -m fuzz.kernels --merges 2000

clean:
	rm -rf .venv magmerge-demo site

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

.venv/docs-installed: .venv/demo-installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@
