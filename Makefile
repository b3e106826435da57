# Everything runs in .venv, which the targets make for themselves.
PYTHON ?= python3.11
VENV ?= .venv
OUT ?= runs/demo
ARGS ?=
BENCH ?= round dp-step
WORKERS ?= logical

# Flower: send nothing, ask for no updates, and one thread a client.
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# With two cores, threads inside a test only get in the way of the processes that it starts.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo serve tour federation test statistical slow check format bench proto clean

help:
	@echo 'make demo         should the 20 local markets federate? all arms, into $(OUT)'
	@echo '                    OUT=runs/other  another folder'
	@echo '                    ARGS="--set privacy.target_epsilon=2"  other settings'
	@echo 'make serve        ask the model of the demo: the page and REST on port 8080, gRPC on 50051'
	@echo 'make tour         take the pictures of the page in docs/pictures anew, with Chromium'
	@echo 'make federation   a whole federation of real processes on this machine, into runs/federation'
	@echo '                    needs nginx and PostgreSQL; installs them where it is root on Debian'
	@echo 'make test         all tests but the slow and the statistical ones, one process a core, 4 at most'
	@echo '                    WORKERS=0  in one process;  ARGS="tests/test_model.py -x"  some of them'
	@echo 'make statistical  the slow and the statistical tests (also: make slow)'
	@echo 'make check        ruff, mypy --strict, and who may import whom'
	@echo 'make format       let ruff format and mend'
	@echo 'make bench        what a round and a private step cost beside their floors: a JSON a line'
	@echo '                    BENCH=deployment  only one of round, dp-step; or deployment, shops: real processes;'
	@echo '                    BENCH=secure-sum, BENCH=homomorphic: sums that hide updates beside others;'
	@echo '                    BENCH=serving: answers beside numpy, faiss, usearch; BENCH=soak: 10 minutes of load'
	@echo 'make proto        make the gRPC contract of server/query/wire into Python anew'
	@echo 'make setup        only install requirements.lock into $(VENV)'
	@echo 'make clean        remove caches and $(VENV); runs/ stays'
	@echo
	@echo 'python -m simulations --help   (in $(VENV)/bin) says what else can be asked.'

setup: $(INSTALLED)

$(INSTALLED): requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo 'Python 3.11 is needed: install it, or say make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo '$(PYTHON) is not Python 3.11: say make PYTHON=/path/to/python3.11' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-input -r requirements.lock
	@touch $@

demo: $(INSTALLED)
	@if [ -e '$(OUT)/report.json' ]; then \
	  echo 'Nothing was run: $(OUT) holds an earlier run. Its page is $(OUT)/report.html'; \
	  echo 'To run again: make demo OUT=runs/another, or remove $(OUT) first.'; \
	else \
	  $(BIN)/python -m simulations run simulations/experiments/demo.toml --out '$(OUT)' $(ARGS); \
	fi

# Ports and more: ARGS="--port 9000 --grpc-port 9001"
serve: $(OUT)/registry
	$(BIN)/python -m server serve '$(OUT)/registry' --catalogue '$(OUT)/catalogue' \
	  --report '$(OUT)/report.json' $(ARGS)

$(OUT)/registry: $(INSTALLED)
	@[ -e '$(OUT)/report.json' ] || $(MAKE) demo ARGS=
	@[ -e '$@' ] || $(BIN)/python -m server registry publish \
	  '$(OUT)/models/federated-dp' --to '$@' --force

# The README's pictures, taken anew.
tour: $(OUT)/registry
	FEDTAIL_TOUR='$(OUT)' $(PYTEST) tests/test_page_tour.py $(ARGS)

# Debian keeps nginx and PostgreSQL's server out of an ordinary user's PATH.
federation: OUT = runs/federation
federation: $(INSTALLED)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  missing=; \
	  [ -x /usr/sbin/nginx ] || missing='nginx-light'; \
	  ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"; \
	  if [ -n "$$missing" ]; then \
	    echo "installing $$missing"; \
	    apt-get update -q >/dev/null; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing >/dev/null; \
	  fi; \
	fi
	$(BIN)/python -m simulations federation --out '$(OUT)' $(ARGS)

# A file's tests stay together: they share what it takes seconds to make.
test: $(INSTALLED)
	$(PYTEST) -m 'not slow and not statistical' -n $(WORKERS) --maxprocesses 4 --dist loadfile $(ARGS)

statistical slow: $(INSTALLED)
	$(PYTEST) -m 'slow or statistical' $(ARGS)

# What grpcio-tools makes of the gRPC contract.
proto: $(INSTALLED)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
	  server/query/wire/fedtail.proto

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	@for name in $(BENCH); do \
	  $(BIN)/python -m simulations bench $$name --json | $(BIN)/python -c \
	    'import json, sys; print(json.dumps(json.load(sys.stdin)))' || exit 1; \
	done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find common client server simulations tests -name __pycache__ -type d -prune -exec rm -rf {} +
