# Every target sets itself up from a fresh clone, in .venv, with the exact versions of
# constraints.txt. The stamp files below make the second call start at once.
#
#   PYTHON       the interpreter that .venv is made from (3.11 or newer)
#   TORCH_INDEX  one more package index, for torch only. Empty: the default index, which on Linux
#                has the CUDA build; https://download.pytorch.org/whl/cpu has the smaller CPU build.
#   ARGS         passed on to the command: make serve ARGS="--port 9000"

PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=

VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
VERSIONS := pyproject.toml constraints.txt

PROMETHEUS := deploy/prometheus
MANIFESTS := $(filter-out %/kustomization.yaml,$(wildcard deploy/k8s/base/*.yaml))
# Debian's package `prometheus` has it. Without it its checks are left out, but not where CI is set.
PROMTOOL := $(or $(CI),$(shell command -v promtool))

# OpenMP threads that spin while they wait stall each other on a busy machine.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: serve test check bench peers
.DELETE_ON_ERROR:

serve: $(VENV)/.stamp-serve
	$(BIN)/rpiae serve $(ARGS)

test: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.stamp-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/kubernetes-validate --strict --quiet $(MANIFESTS)
	$(if $(PROMTOOL),promtool check config $(PROMETHEUS)/prometheus.yml $(PROMETHEUS)/kubernetes.yml)
	$(if $(PROMTOOL),promtool test rules $(PROMETHEUS)/alerts_test.yml)

# make bench ARGS=--full measures for hours what the short form measures in about 15 minutes.
bench: $(VENV)/.stamp-dev
	$(BIN)/python -m benchmarks $(ARGS)

# The servers that `python -m benchmarks.serving_peers` measures beside ours, in $(PEERS).
peers: $(PEERS)/.stamp

$(PEERS)/.stamp: benchmarks/peers/requirements.txt constraints.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt torch setuptools
	$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	touch $@

# torch comes first and pinned: whatever is installed after it then leaves it alone.
$(VENV)/.stamp-torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rpiae needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	@echo "Installing into $(VENV); the first time takes a minute or more."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt torch setuptools
	touch $@

$(VENV)/.stamp-serve: $(VENV)/.stamp-torch $(VERSIONS)
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e .
	touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-torch $(VERSIONS)
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[train,export,dev]'
	touch $(VENV)/.stamp-serve $@
