# Everything a user or a CI job does. `make help` lists it; the only needs are git, make and Python 3.11 to 3.13 with venv.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && { echo $$python; break; }; done)
EXTRAS ?= $(if $(filter run lab serve,$(MAKECMDGOALS)),book,dev)
PARAMETERS ?= quick
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed-$(EXTRAS)

.DEFAULT_GOAL := help
.PHONY: help setup run lab test lint unit notebooks book fuzz mutants e2e example gpu-test gpu-session bench-similarity serve bench-serving \
	image-test lock clean

help:  ## list what make can do
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' | awk -F'|' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(INSTALLED)  ## make .venv and install everything into it, pinned; with a GPU: make setup EXTRAS=dev,gpu

$(INSTALLED): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; found: $$(python3 --version 2>&1). Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "installing into $(VENV) (once; a few minutes, about 3 GB)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[$(EXTRAS)]'
	@touch $@ $(if $(findstring dev,$(EXTRAS)),$(VENV)/installed-book)  # dev has all of book

run: $(INSTALLED)  ## execute the whole book into outputs/quick/ and print where the report lies; PARAMETERS=full for the long one
	@$(BIN)/altlas run --parameters $(PARAMETERS)

lab: $(INSTALLED)  ## open JupyterLab in notebooks/; more of its options by ARGS='--no-browser --port=9999'
	@$(BIN)/altlas lab $(ARGS)

test: lint unit notebooks book  ## lint, unit tests, notebook tests and a headless run of the book

lint: $(INSTALLED)  ## ruff, and notebooks without outputs
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb

# Profiling goes first, in a process of its own: a trace looks through all libraries that other tests have loaded, which took 7 minutes.
unit: $(INSTALLED)  ## the unit tests
	@$(BIN)/python -m pytest $$(ls tests/test_profiling*.py)
	@$(BIN)/python -m pytest tests --ignore=tests/book --ignore=tests/e2e --ignore-glob='*/test_profiling*'

notebooks: $(INSTALLED)  ## each notebook with its own small defaults
	@ALTLAS_OUTPUTS=$$(mktemp -d) && export ALTLAS_OUTPUTS && \
	$(BIN)/python -m pytest --nbval-lax --nbval-cell-timeout=600 notebooks; \
	status=$$?; rm -rf "$$ALTLAS_OUTPUTS"; exit $$status

book: $(INSTALLED)  ## the whole book, headless, with small parameters
	@$(BIN)/python -m pytest tests/book

fuzz: $(INSTALLED)  ## generated damage for every reader of a file: 1,000 inputs each; more by N=10000
	@ALTLAS_FUZZ=$(or $(N),1000) $(BIN)/python -m pytest -q -s tests/test_fuzz.py

mutants:  ## 200 mutants of the logic, each against the tests of its file: half an hour; one area by ARGS='--only data'
	@$(MAKE) --no-print-directory setup EXTRAS=dev,mutants && $(BIN)/python -m benchmarks.mutants $(ARGS)

e2e:  ## run the notebooks in JupyterLab and open the report, in a real browser (Debian's chromium); screenshots in outputs/e2e/
	@$(MAKE) --no-print-directory setup EXTRAS=dev,e2e,pdf && $(BIN)/python -m pytest tests/e2e

example: $(INSTALLED)  ## make docs/example anew: the report and the executed notebooks as HTML, with the device that they say
	@$(BIN)/altlas run --run example -p compare_options=true -p plan_time_limit_s=480
	@mkdir -p docs/example && rm -f docs/example/*.html && cp outputs/example/report/index.html docs/example/
	@$(BIN)/jupyter nbconvert --log-level=ERROR --to html --output-dir=docs/example --HTMLExporter.mathjax_url= \
		--HTMLExporter.require_js_url= --HTMLExporter.jquery_url= --HTMLExporter.mermaid_js_url= \
		--TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_input_tags=hide-input outputs/example/executed/*.ipynb

gpu-test:  ## the tests that need a GPU, in .venv or with a Python that has CuPy: make gpu-test PYTHON=python3
	@$(if $(filter command,$(firstword $(origin PYTHON))),$(PYTHON),$(BIN)/python) -m pytest -m gpu $$(grep -l 'mark\.gpu' tests/*.py)

bench-similarity: $(INSTALLED)  ## time the similarity engine beside its peers (EXTRAS=dev,bench installs them), ARGS='--sizes 1000 100000'
	@$(BIN)/python -m benchmarks.similarity --figure benchmarks/results/similarity.png $(ARGS)

serve: $(INSTALLED)  ## serve the built-in texts at http://127.0.0.1:8000; more options by ARGS='--port 8001'
	@mkdir -p outputs/serving && test -f outputs/serving/vectors.npy || $(BIN)/python -c \
		"import numpy; from altlas_lib import data; numpy.save('outputs/serving/vectors.npy', data.embed(data.load_texts('builtin', limit=5000).texts).vectors)"
	@$(BIN)/altlas serve --corpus outputs/serving/vectors.npy $(ARGS)

bench-serving: $(INSTALLED)  ## batching, payloads and overhead of the server, then a hundred kills; more options by ARGS='--soak-minutes 30'
	@$(BIN)/python -m benchmarks.serving $(ARGS)
	@$(BIN)/python -m benchmarks.serving_kills

image-test:  ## build the CPU image without a registry, by debootstrap and buildah (as root, Debian), and ask its server
	@deploy/image-test.sh

LOCK := $(BIN)/uv pip compile --quiet --universal --no-annotate --no-header --python-version 3.11

lock: $(INSTALLED)  ## pin the newest versions that fit together into requirements.lock
	@$(BIN)/python -m pip install --quiet uv
	@# PyTorch's CUDA is another one than TensorFlow's and CuPy's: its own wheels are pinned, what they bring is left to them.
	@folder=$$(mktemp -d) && sed '/^torch = /d' pyproject.toml > $$folder/pyproject.toml && \
		$(LOCK) --upgrade --all-extras --output-file requirements.lock $$folder/pyproject.toml && \
		$(LOCK) --no-deps --extra torch --constraint requirements.lock pyproject.toml > $$folder/direct && \
		grep -E '^(onnxscript|torch)==' $$folder/direct >> requirements.lock && LC_ALL=C sort -s -t= -k1,1 -o requirements.lock requirements.lock; \
		status=$$?; rm -r $$folder; exit $$status

clean:  ## remove .venv, outputs and caches
	rm -rf $(VENV) outputs/* .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

gpu-session:  ## at most nine minutes on any NVIDIA GPU: tests, similarity, calibration, plans, training; ARGS=--rehearse without one
	@$(if $(filter command,$(firstword $(origin PYTHON))),$(PYTHON),$(BIN)/python) -m benchmarks.gpu_session $(ARGS)
