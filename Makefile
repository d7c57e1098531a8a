# Two targets are all a newcomer needs: `make demo` and `make test`. Each makes its own environment.

PYTHON ?= python3
VENV ?= .venv
DEV := $(VENV)/dev
DEMO := $(VENV)/demo
OUT ?= .demo
EXTRAS := $(if $(filter all,$(LOCKGATE_REQUIRE)),dev transformers,dev)

.PHONY: demo test test-s3 lint bench models clean

demo: $(DEMO)/ready
	rm -rf $(OUT)
	$(DEMO)/bin/lockgate demo --out $(OUT)

test: $(DEV)/ready
	$(DEV)/bin/python -m pytest -n 2 -m "not serial and not s3"
	$(DEV)/bin/python -m pytest -m "serial and not s3"

# Against a real Ceph, made for the run; root on Debian gets its packages if they are missing.
test-s3: $(DEV)/ready
	$(DEV)/bin/python scripts/ceph.py install
	$(DEV)/bin/python -m pytest -m s3 tests/contract

lint: $(DEV)/ready
	$(DEV)/bin/ruff check src tests scripts
	$(DEV)/bin/ruff format --check src tests scripts
	$(DEV)/bin/mypy
	$(DEV)/bin/lint-imports

bench: $(DEV)/ready
	for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(DEV)/bin/python $$bench || exit 1; done

# Trains the demo's models anew (about five minutes; the result is committed).
models:
	sh scripts/environment.sh $(PYTHON) $(VENV)/train train
	$(VENV)/train/bin/python scripts/train_demo_models.py

$(DEMO)/ready: pyproject.toml scripts/environment.sh $(shell find src -name '*.py' -o -name '*.sql')
	sh scripts/environment.sh $(PYTHON) $(DEMO)

$(DEV)/ready: pyproject.toml scripts/environment.sh
	sh scripts/environment.sh $(PYTHON) $(DEV) $(EXTRAS)

clean:
	rm -rf $(VENV) $(OUT) build src/*.egg-info
