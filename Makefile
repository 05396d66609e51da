# make demo: everything, small (about 20 minutes on two cores); again after a stop: it goes on.
# make test: all tests. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= runs/demo

.PHONY: demo test lint bench clean

# constraints.txt pins what the tests ran with; the stamp is newer than both files once everything is installed.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[backbones,hands,lerobot,dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/arvrm demo --output $(OUTPUT) $(if $(wildcard $(OUTPUT)),--resume)

test: $(VENV)/.installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed
	$(BIN)/python -m ruff check .

bench: $(VENV)/.installed
	for name in render store convert evaluation model_speed; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf $(VENV) build *.egg-info
