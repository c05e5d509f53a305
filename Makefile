# Everything from a fresh clone with Python 3.11 and a package index. Each target is safe to repeat.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo lint test test-slow test-xla bench clean

help:
	@echo "make setup      install into $(VENV)"
	@echo "make demo       raw comments in, a pretrained model and a report out, on the embedded sample"
	@echo "make test       lint, types and the test suite"
	@echo "make test-slow  the long tests"
	@echo "make test-xla   the TPU path on the CPU, in an environment of its own ($(VENV)-xla, 8 GB)"
	@echo "make bench      speed beside the peers (needs comments: DATASET='data/*.parquet')"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "== installing into $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,reference,cluster,morphemes,finetuning,onnx]"
	@touch $@

demo: setup
	@echo "== raw comments -> clean -> dedup -> corpus"
	$(BIN)/python recipes/build_corpus.py
	@echo "== corpus -> tokenizer"
	$(BIN)/python recipes/train_tokenizer.py --corpus_dir out/corpus --vocab_size 4000 --morphemes particles
	@echo "== corpus -> packed rows"
	$(BIN)/python recipes/pack.py --dataset out/corpus --tokenizer out/tokenizer
	@echo "== packed rows -> training -> export -> report"
	$(BIN)/accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/pretrain.py --dataset out/packed

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	@echo "== tests"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m slow

# torch_xla binds to one version of torch, whose build for CUDA is the only one that a package index has
$(VENV)-xla/.installed: pyproject.toml constraints.txt
	@echo "== installing into $(VENV)-xla"
	$(PYTHON) -m venv $(VENV)-xla
	grep -v '^torch==' constraints.txt | $(VENV)-xla/bin/python -m pip install --quiet --constraint /dev/stdin \
		--editable ".[xla]" pytest
	@touch $@

test-xla: $(VENV)-xla/.installed
	PJRT_DEVICE=CPU $(VENV)-xla/bin/python -m pytest tests/xla

bench: setup
	$(BIN)/python benchmarks/clean.py --dataset "$(DATASET)"
	$(BIN)/python benchmarks/corpus.py --dataset "$(DATASET)"
	$(BIN)/python benchmarks/tokenizer.py --dataset "$(DATASET)"
	$(BIN)/python benchmarks/throughput.py --dataset "$(DATASET)"

clean:
	rm -rf $(VENV) $(VENV)-xla out .pytest_cache .ruff_cache .mypy_cache
