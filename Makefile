# Each target makes its own set-up: a virtual environment in .venv, with the extra it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test test-cloud lint audit format docs bench bench-servers bench-policies chaos soak fuzz truth lock \
  deb release test-install clean

help:
	@echo "make demo    four acts on this machine: broker, stand-in cloud and daemon (no root)"
	@echo "make test    all tests"
	@echo "make test-cloud  tests with real MLServer, KServe and Ray Serve (installs 1.5 GB)"
	@echo "make lint    ruff, mypy, import-linter, hadolint, and make audit"
	@echo "make audit   is a vulnerability known of a locked dependency (pip-audit)"
	@echo "make format  let ruff format and fix"
	@echo "make docs    write docs/reference from the code's own types"
	@echo "make bench   compare with a bare loop; deferred jobs; estimates; cascades; HTTP (needs mosquitto)"
	@echo "make bench-servers   what Edgewise adds to MLServer and Ray Serve, and what batching is worth"
	@echo "make bench-policies  all policies and baselines on simulated networks, against the oracle"
	@echo "make truth   hold the simulator against the real daemon (needs mosquitto, a quiet machine)"
	@echo "make chaos   kill, cut off and fill up what a daemon needs, and count (needs mosquitto)"
	@echo "make soak    mixed load with faults for 30 minutes: does anything grow (needs mosquitto)"
	@echo "make fuzz    what strangers send, mutated: coverage-guided fuzzing (x86-64)"
	@echo "make deb     build the Debian package in dist/ (needs debhelper, lintian)"
	@echo "make release wheel, sdist, Debian package, SBOM and SHA256SUMS in dist/ (needs what make deb needs)"
	@echo "make test-install   try package, image and release for real (root; needs CONTRIBUTING.md's packages)"
	@echo "make lock    pin all dependencies anew, with their hashes"
	@echo "make clean   remove the virtual environment and caches"

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv

# One stamp for each extra, so that a target installs no more than it needs.
.venv/.%: .venv/bin/python pyproject.toml
	@echo "installing edgewise[$*] into .venv" >&2
	@$(PIP) install --editable '.[$*]'
	@touch $@

demo: .venv/.demo
	@$(BIN)/edgewise demo $(ARGS)

test: .venv/.test
	@$(BIN)/pytest $(ARGS)

# A virtual environment for each model server, made side by side.
CLOUD := mlserver kserve ray
CLOUD_STAMPS := $(CLOUD:%=.venv-cloud/%/.done)

.venv-cloud/%/.done: deploy/%/requirements.txt pyproject.toml
	@echo "installing $* into .venv-cloud/$*" >&2
	@$(PYTHON) -m venv .venv-cloud/$*
	@.venv-cloud/$*/bin/python -m pip --disable-pip-version-check --quiet install --no-compile \
	  --requirement $< --editable .
	@touch $@

.PHONY: cloud-servers
cloud-servers:
	@$(MAKE) --no-print-directory --jobs=3 $(CLOUD_STAMPS)

test-cloud: .venv/.test cloud-servers
	@$(BIN)/pytest -m cloud $(ARGS)

lint: .venv/.lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/python deploy/audit.py

audit: .venv/.lint
	@$(BIN)/python deploy/audit.py $(ARGS)

format: .venv/.lint
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: .venv/.test
	@$(BIN)/python -B docs/reference/generate.py

bench: .venv/.bench
	@$(BIN)/python bench/run.py $(ARGS)

bench-servers: .venv/.bench cloud-servers
	@$(BIN)/python bench/run.py --only servers $(ARGS)

bench-policies: .venv/.bench
	@$(BIN)/python bench/bench_policies.py $(ARGS)

truth: .venv/.test
	@$(BIN)/pytest -m truth $(ARGS)

chaos: .venv/.test
	@$(BIN)/python chaos/run.py $(ARGS)

soak: .venv/.test
	@$(BIN)/python soak/soak.py $(ARGS)

fuzz: .venv/.fuzz
	@$(BIN)/python -m fuzz.run $(ARGS)

# For Python 3.11 and later on any machine. uv overlooks that newer backports-strenum are for older ones.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" --upgrade
lock: .venv/bin/python
	@$(PIP) install uv
	@echo 'backports-strenum<1.3.1' | $(COMPILE) --extra rules --extra zstd --constraint - \
	  --output-file requirements.lock pyproject.toml
	@echo 'hatchling>=1.27' | $(COMPILE) --output-file requirements-build.lock -

deb:
	@deploy/make-deb

release: .venv/.release
	@CYCLONEDX=$(BIN)/cyclonedx-py deploy/make-release

test-install: .venv/.test release
	@$(BIN)/pytest -m install $(ARGS)

clean:
	rm -rf .venv .venv-cloud .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
