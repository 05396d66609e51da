# make demo: everything, small (about 20 minutes on two cores); again after a stop: it goes on.
# make test: style, types and all tests. make api: the pages of the API. All make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= runs/demo

.PHONY: demo test lint types api bench clean

# constraints.txt pins what the tests ran with; the stamp is newer than both files once everything is installed.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV); the first time takes some minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[backbones,hands,lerobot,dev,docs]' \
		> $(VENV)/install.log 2>&1 || { echo "not installed; $(VENV)/install.log says why" >&2; exit 1; }
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/arvrm demo --output $(OUTPUT) $(if $(wildcard $(OUTPUT)),--resume)

test: lint types
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed
	$(BIN)/python -m ruff check .

types: $(VENV)/.installed
	$(BIN)/basedpyright --pythonpath $(BIN)/python

api: $(VENV)/.installed
	$(BIN)/pdoc --docformat google --output-directory build/api arvrm
	@echo build/api/arvrm.html

bench: $(VENV)/.installed
	for name in render store convert evaluation model_speed; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf $(VENV) build *.egg-info
