# The front door. `make demo` and `make test` set up all they need; `make` alone lists the targets.
# Needs Python 3.10 to 3.12 and make. Another interpreter: `make setup PYTHON=/path/to/python3.12`.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
LOCK := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.10 --quiet --no-progress \
	--annotation-style line --custom-compile-command "make lock"

# The first of these that exists and is 3.10 to 3.12. 3.11 leads since that is what the tests are run on.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.10 python3 python,$(if $(call fits,$(name)),$(name))))
fits = $(shell command -v $(1) >/dev/null 2>&1 && $(1) -c \
	'import sys, venv, ensurepip; print("yes" if (3, 10) <= sys.version_info[:2] <= (3, 12) else "")' 2>/dev/null)

DEMO_VIDEO := demo/talk_dubbed.mp4
DEMO_SHEET := demo/talk_dubbed.png
UPGRADE ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo check format test slow fuzz bench bundle lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/.dev  ## install everything needed to work on lipdub into .venv

demo: $(VENV)/.runtime  ## install what running needs, dub the example, say where the result lies
	@mkdir -p demo
	$(BIN)/lipdub sync examples/talk.mp4 examples/speech.wav -o $(DEMO_VIDEO) --fit speech --force --report demo/report.json
	$(BIN)/lipdub sheet $(DEMO_VIDEO) -o $(DEMO_SHEET) --force
	@echo "dubbed video:  $(CURDIR)/$(DEMO_VIDEO)"
	@echo "contact sheet: $(CURDIR)/$(DEMO_SHEET)"

check: $(VENV)/.dev  ## lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.dev  ## format the code and apply the safe lint fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: $(VENV)/.dev  ## the tests, less the slow ones, on all cores; ends with the ten that took longest
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --durations 10

slow: $(VENV)/.dev  ## the slow tests: memory, long clips, training
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.dev  ## speed and peak memory of a dub on this machine
	$(BIN)/python -m benchmarks speed examples/portrait.mp4
	$(BIN)/python -m benchmarks memory-growth examples/portrait.mp4

# From clips to a bundle, as models/base was made: `make bundle TRAIN=clips/train VAL=clips/val OUT=models/mine`. Broken off, it goes on where
# it stopped. MANIFEST names the speakers, ANCHOR one in sync; SCALE=0.01 tries the whole way out in minutes. Synthetic speech needs espeak-ng; without it, SPEECH=
RUNS := runs
OUT := models/mine
MANIFEST :=
ANCHOR :=
SPEECH := $(RUNS)/speech.npz
SCALE := 1
PRECISION := bf16-mixed
scaled = $(shell awk 'BEGIN { n = int($(1) * $(SCALE)); print (n < 4) ? 4 : n }')
on = $$(test -f $(RUNS)/$(1)/latest.pt && echo --resume) --precision $(PRECISION) -o $(RUNS)/$(1) --val $(RUNS)/prepared/val $(RUNS)/prepared/train
bundle: $(VENV)/.dev  ## train a bundle from clips: TRAIN=, VAL=, OUT= (hours; goes on where it stopped)
	$(if $(and $(TRAIN),$(VAL)),,$(error say where the clips are: make bundle TRAIN=clips/train VAL=clips/val OUT=models/mine))
	$(BIN)/lipdub prepare $(TRAIN) -o $(RUNS)/prepared/train $(if $(MANIFEST),--manifest $(MANIFEST)) --encoder encoder --voices 4
	$(BIN)/lipdub prepare $(VAL) -o $(RUNS)/prepared/val $(if $(MANIFEST),--manifest $(MANIFEST)) --encoder encoder --voices 0
	$(if $(SPEECH),test -f $(SPEECH) || $(BIN)/python -m lipdub.train.synthetic_speech $(SPEECH) --minutes $(call scaled,75))
	test -f $(RUNS)/prepared/train/offsets.json || $(BIN)/lipdub train offsets $(RUNS)/prepared/train $(if $(ANCHOR),--anchor $(ANCHOR))
	$(BIN)/lipdub train expert $(call on,expert) --steps $(call scaled,1500) --batch 40
	$(BIN)/lipdub train reader $(call on,reader) --steps $(call scaled,2500)
	$(BIN)/lipdub train memory $(call on,memory) --steps $(call scaled,1200) --balance 0.45 $(if $(SPEECH),--speech $(SPEECH))
	$(BIN)/lipdub train generator $(call on,generator) --memory $(RUNS)/memory/best.pt --reader $(RUNS)/reader/best.pt \
		--expert $(RUNS)/expert/best.pt --steps $(call scaled,20000) --weight audio_visual_from=$(call scaled,8000)
	$(BIN)/lipdub export-onnx $(RUNS)/generator/latest.pt -o $(RUNS)/drawn --half --force
	$(BIN)/lipdub train hearing $(RUNS)/prepared/train --model $(RUNS)/drawn $(if $(SPEECH),--speech $(SPEECH)) -o $(OUT) --force
	$(BIN)/lipdub evaluate --set $(VAL) --model $(OUT) -o $(RUNS)/scorecard

# Pins stay where they are unless `make lock UPGRADE=--upgrade`. The sed drops the marker that every line would repeat.
lock: $(VENV)/.dev  ## make requirements/*.txt again after a change of the dependencies in pyproject.toml
	$(LOCK) $(UPGRADE) -o requirements/runtime.txt
	$(LOCK) $(UPGRADE) --extra train --extra dev -o requirements/dev.txt
	sed -i.bak -e "s/ and python_full_version < '3.13'//" -e "s/python_full_version < '3.13' and //" \
		-e "s/ ; python_full_version < '3.13'//" requirements/*.txt
	rm requirements/*.bak
	sed -e "/^onnxruntime==/d" -e "s/^onnxruntime-gpu==/onnxruntime==/" -e "s/ and sys_platform != 'darwin'//" \
		-e "s/, onnxruntime-gpu//" -e "s/onnxruntime-gpu/onnxruntime/" requirements/runtime.txt > requirements/cpu.txt

fuzz: $(VENV)/.dev  ## dub damaged files: SEED=0, CASES=1000 (half an hour; what fails is kept in fuzz/)
	$(BIN)/python tests/fuzz_dub.py --seed $(or $(SEED),0) --cases $(or $(CASES),1000)

clean:  ## remove .venv, the demo's output and the caches
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so an install that broke off is taken up again by the next call.
$(VENV)/.runtime: requirements/runtime.txt pyproject.toml | $(VENV)/.made
	@echo "installing what running needs into $(VENV); this takes a few minutes once"
	@$(PIP) install --no-deps -r requirements/runtime.txt
	@$(PIP) install --no-deps --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt | $(VENV)/.runtime
	@echo "installing what training and testing need into $(VENV); this takes a few minutes once"
	@$(PIP) install --no-deps -r requirements/dev.txt
	@$(PIP) install -c requirements/dev.txt torch
	@touch $@

$(VENV)/.made:
	$(if $(call fits,$(PYTHON)),,$(error lipdub needs Python 3.10, 3.11 or 3.12 (with its venv module), \
		and $(if $(PYTHON),$(PYTHON) is not,found none as python3.11 python3.12 python3.10 python3 or python); install one, or name it: make PYTHON=/path/to/python3.12))
	@$(PYTHON) -m venv $(VENV)
	@touch $@
