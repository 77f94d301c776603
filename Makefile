# `make repro` and `make test` each set themselves up: everything is installed into .venv, nothing outside it.

# The first interpreter that TensorFlow has wheels for. To use another one: make repro PYTHON=/path/to/python3.12
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.11 python3.10 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
STAMP := .venv/installed
# DVC runs `python -m pipeline.STAGE`; this is the python it must find.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: repro sweep test test-all lint docs setup ui serve lock
.DEFAULT_GOAL := repro

repro: setup ## set up, check params.yaml, run what changed, complete the runs in MLflow and the pages
	headstart check
	dvc repro
	headstart report --if-stale
	@headstart track || echo 'The results are complete; MLflow is not. Run `headstart track` again.' >&2
# After an experiment that failed, DVC can leave files changed without Git noticing; new times make it look again.
	@touch -c metrics/*.json plots/*.csv

# Only up to the head, to choose what is worth fine-tuning. Another sweep: make sweep SWEEP='-S backbone=mobilenetv2,resnet50'
SWEEP ?= -S 'train_head.hidden=[],[128]'
sweep: setup ## try heads, two at a time, through DVC's queue; then show all experiments, best first
	dvc exp run --queue $(SWEEP) train_head
	dvc exp run --run-all --jobs $(or $(JOBS),2)
	headstart leaderboard
	headstart track

test: setup .venv/installed-hub .venv/installed-audio .venv/installed-ray ## the tests, without those marked slow
	python -m pytest

test-all: setup .venv/installed-hub .venv/installed-audio .venv/installed-ray ## all tests
	python -m pytest -m ""

lint: setup ## style, formatting, types
	ruff check .
	ruff format --check .
	mypy

docs: setup ## docs/parameters.md, from headstart/config.py and params.yaml
	python -m headstart.reference > docs/parameters.md

ui: setup ## the MLflow UI on http://127.0.0.1:5000 (another port: make ui PORT=5001)
	headstart ui --port $(or $(PORT),5000)

serve: setup ## models/model.keras behind HTTP on http://127.0.0.1:5002 (another port: make serve PORT=5003)
	headstart serve --port $(or $(PORT),5002)

# More packages, each set with a lock of its own: make setup EXTRAS=jax, or EXTRAS="hub jax"
EXTRAS ?=
setup: $(STAMP) $(EXTRAS:%=.venv/installed-%)

# A set-up that was interrupted leaves no stamp and starts again. The last line adds the `headstart` command.
$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.13 with venv and pip was found. Install one (Debian, Ubuntu: apt install python3-venv), or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check --quiet --require-hashes -r requirements.lock
	.venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)

# A lock is complete: what a package asks for besides is left out on purpose, as tensorflow-text, which Windows lacks.
.venv/installed-%: requirements-%.lock $(STAMP)
	.venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --require-hashes -r $<
	@touch $@

lock: ## follow pyproject.toml; other versions stay (update all: make lock UPGRADE=--upgrade); needs uv: pip install uv
	uv pip compile pyproject.toml --group dev --universal --python-version 3.10 --generate-hashes $(UPGRADE) --no-header --quiet --output-file requirements.lock
	echo jax | uv pip compile - --constraint requirements.lock --universal --python-version 3.10 --generate-hashes $(UPGRADE) --no-header --quiet --output-file requirements-jax.lock
	printf '%s\n' huggingface-hub kagglehub "keras-hub>=0.32; python_version>='3.11'" "keras-hub; python_version<'3.11'" safetensors tokenizers | uv pip compile - --constraint requirements.lock --override requirements-hub.override --universal --python-version 3.10 --generate-hashes $(UPGRADE) --no-header --quiet --output-file requirements-hub.lock
	echo 'ray[data]' | uv pip compile - --constraint requirements.lock --universal --python-version 3.10 --generate-hashes $(UPGRADE) --no-header --quiet --output-file requirements-ray.lock
	printf '%s\n' safetensors soundfile soxr | uv pip compile - --constraint requirements.lock --constraint requirements-hub.lock --universal --python-version 3.10 --generate-hashes $(UPGRADE) --no-header --quiet --output-file requirements-audio.lock
