# make demo: everything, small (about 20 minutes on two cores); again after a stop: it goes on.
# make study: what hands give, all rows (days on two cores); a part of it: make study STUDY="--rows places --seeds 0".
# make test: style, types and all tests. make test-sim PYTHON=python3.13: the simulator's tests, without torch.
# make api: the pages of the API. make house: docs/house.svg, from the import table. All make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= runs/demo
SIMULATOR := .venv-simulator
SIMULATOR_TESTS := chains env experts geometry tasks verify versions

.PHONY: demo study test test-sim lint types api house bench clean

# constraints.txt pins what the tests ran with; the stamp is newer than both files once everything is installed.
# An environment of an older version may hold the other PyBullet: two write the same file, so both go and one comes.
PIP = $(BIN)/python -m pip --disable-pip-version-check
INSTALL = $(PIP) install -c constraints.txt -e '.[backbones,hands,lerobot,dev,docs]'
TWO_BULLETS = $(PIP) show -q pybullet && $(PIP) show -q pybullet-arm64
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV); the first time takes some minutes"
	@$(PYTHON) -m venv $(VENV)
	@{ $(INSTALL) && if $(TWO_BULLETS); then $(PIP) uninstall -y pybullet pybullet-arm64 && $(INSTALL); fi; } \
		> $(VENV)/install.log 2>&1 || { echo "not installed; $(VENV)/install.log says why" >&2; exit 1; }
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/arvrm demo --output $(OUTPUT) $(if $(wildcard $(OUTPUT)),--resume)

study: $(VENV)/.installed
	@$(BIN)/arvrm study --output runs/study $(if $(wildcard runs/study),--resume) $(STUDY)

test: lint types
	$(BIN)/python -m pytest -n 2

test-sim:
	@$(PYTHON) -m venv --clear $(SIMULATOR)
	@$(SIMULATOR)/bin/python -m pip install -q --upgrade 'pip>=25.1'
	@$(SIMULATOR)/bin/python -m pip install -q -c constraints.txt --group simulator
	PYTHONPATH="$(CURDIR)" $(SIMULATOR)/bin/python -m pytest $(SIMULATOR_TESTS:%=tests/test_%.py)

lint: $(VENV)/.installed
	$(BIN)/python -m ruff check .

types: $(VENV)/.installed
	$(BIN)/basedpyright --pythonpath $(BIN)/python

api: $(VENV)/.installed
	$(BIN)/pdoc --docformat google --output-directory build/api arvrm
	@echo build/api/arvrm.html

house: $(VENV)/.installed
	$(BIN)/python docs/house.py

bench: $(VENV)/.installed
	for name in render store convert evaluation model_speed; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf $(VENV) $(SIMULATOR) build *.egg-info
