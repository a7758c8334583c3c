# designloop. `make run` and `make test` are the two commands; `make` alone lists the others.
# Written for the make that Linux and macOS ship (GNU make 3.81 and later) and a POSIX shell.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help run test lab docs check-docs reproduce prepare clean install check-export lint check-notebooks check-tests

EXTRAS := dev,ray,peers,text,lm,hf
WORKERS := 2
BIN := .venv/bin
PY := $(BIN)/python
STAMP := .venv/installed
INSTALL_LOG := .venv/install.log
LOGS := build/logs
MIN_PYTHON := $(shell sed -n 's/^min_python *= *//p' settings.ini)
# The Python the lock was made with comes first; `make PYTHON=/path/to/python run` names one.
PYTHONS := $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3.14 python3 python)

# Everything runs in .venv: nothing of the caller's Python set-up leaks in. One BLAS thread; parallelism is over runs.
unexport PYTHONPATH
unexport PYTHONHOME
export PYTHONNOUSERSITE := 1
export OMP_NUM_THREADS := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

# The stamp holds the folder it was made in and a sum of what was installed from: a checkout that was moved or copied, or a
# Python that went away, installs again; a file that only looks newer does not.
ifneq ($(shell [ "`sed -n 1p $(STAMP) 2>/dev/null`" = "`pwd -P`" ] && $(PY) -c '' 2>/dev/null && echo whole),whole)
.PHONY: $(STAMP)
endif

help: ## this list
	@echo "designloop: make run, make test, and"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-23s %s\n", $$1, $$2 }'

install: $(STAMP) ## make .venv and install everything (the other targets do this themselves)

$(STAMP): settings.ini setup.py constraints.txt
	@set -e; \
	fits='import sys; sys.exit(sys.version_info[:2] < tuple(map(int, "$(MIN_PYTHON)".split("."))))'; \
	was=`sed -n 1p $(STAMP) 2>/dev/null || true`; sum_was=`sed -n 2p $(STAMP) 2>/dev/null || true`; \
	sum="`cat settings.ini setup.py constraints.txt | cksum` $(EXTRAS)"; \
	if [ -n "$$was" ] && [ "$$was" != "`pwd -P`" ]; then usable=no; \
	elif $(PY) -c "$$fits" 2>/dev/null && $(PY) -m pip --version >/dev/null 2>&1; then usable=yes; else usable=no; fi; \
	if [ $$usable = yes ] && [ "$$sum" = "$$sum_was" ]; then { pwd -P; echo "$$sum"; } > $@; exit 0; fi; \
	if [ $$usable = no ]; then \
	  python=; bare=; seen=; \
	  for p in $(PYTHONS); do \
	    v=`"$$p" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null` || continue; \
	    if "$$p" -c "$$fits" 2>/dev/null; then \
	      if "$$p" -c 'import venv, ensurepip' 2>/dev/null; then python="$$p"; break; else bare="$$bare $$p"; fi; \
	    else seen="$$seen, $$p is $$v"; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    if [ -n "$$bare" ]; then \
	      echo "Python is there (`echo $$bare`) but cannot make environments: install its venv module (Debian and Ubuntu: apt install`for b in $$bare; do echo " $$b-venv"; break; done`) and run make again." >&2; \
	    else \
	      echo "designloop needs Python $(MIN_PYTHON) or newer (found: `echo "$${seen:-, none}" | cut -c3-`): install one, or name it with 'make PYTHON=/path/to/python$(MIN_PYTHON) $(firstword $(MAKECMDGOALS))'." >&2; \
	    fi; exit 1; \
	  fi; \
	  echo "Making .venv with $$python"; \
	  "$$python" -m venv --clear .venv || { echo "$$python could not make .venv; the lines above say why." >&2; exit 1; }; \
	fi; \
	echo "Installing designloop into .venv: once, a few minutes (log: $(INSTALL_LOG))"; \
	if ! $(PY) -m pip install --disable-pip-version-check --no-input -c constraints.txt -e '.[$(EXTRAS)]' > $(INSTALL_LOG) 2>&1; then \
	  grep -i '^ *error' $(INSTALL_LOG) | tail -n 3 >&2 || true; \
	  if grep -q '^Installing collected' $(INSTALL_LOG); then rm -f $(STAMP); fi; \
	  echo "Installing failed; the whole story is in $(INSTALL_LOG). A network is needed the first time." >&2; exit 1; \
	fi; \
	{ pwd -P; echo "$$sum"; } > $@

# --- what people do -------------------------------------------------------------------------------------------------------

# six proteins that nobody tuned on, ten repetitions each (two runs of five, so that two workers stay busy to the end)
PROTEINS := EGR2_REF_R1,GFI1B_REF_R1,HOXD13_REF_R1,KLF1_REF_R1,PAX6_REF_R1,POU3F4_REF_R1

run: $(STAMP) ## the league of optimizers on real DNA binding sites: about ten minutes, ends with a report page
	@$(BIN)/designloop run binding_league --workers $(WORKERS) --seeds 2 -p n_seeds=5 -p protein=$(PROTEINS)

lab: $(STAMP) ## JupyterLab on the tutorials
	@$(BIN)/designloop lab

docs: $(STAMP) ## build the site into _docs (needs Quarto)
	@command -v quarto >/dev/null 2>&1 || { \
	  echo "Quarto is not installed: get it from conda-forge ('conda env create -f environment.yml' has it) or quarto.org, then run make docs again; make check-docs checks the pages without it." >&2; exit 1; }
	@$(PY) -m designloop.docs readme && touch README.md
	@$(BIN)/nbdev_docs

reproduce: $(STAMP) ## run every experiment's miniature (resumable)
	@for nb in nbs/experiments/*.ipynb; do \
	  case $$nb in *_summary.ipynb) continue;; esac; \
	  slug=`basename $$nb .ipynb`; echo "== $$slug"; \
	  $(BIN)/designloop run $$slug --workers $(WORKERS) || failed="$$failed $$slug"; \
	done; \
	if [ -n "$$failed" ]; then echo "did not finish:$$failed" >&2; exit 1; fi

# --- what contributors do -------------------------------------------------------------------------------------------------

prepare: $(STAMP) ## before a commit: export, clean, lint, README
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean
	@$(BIN)/ruff check --fix nbs pkg tests setup.py
	@$(PY) -m designloop.docs gallery
	@$(PY) -m designloop.docs readme

test: check-export lint check-docs check-notebooks check-tests ## every check; about fifteen minutes on two cores

# $(call step,what,log,command): one line with the time it took; the whole output where it failed.
define step
@mkdir -p $(LOGS); printf '%-36s' '$(1)'; t=`date +%s`; \
if ( $(3) ) > $(LOGS)/$(2).log 2>&1 < /dev/null; then printf 'ok %5d s\n' $$((`date +%s` - t)); \
else printf 'FAILED %d s\n' $$((`date +%s` - t)); cat $(LOGS)/$(2).log; echo "make: $(1): failed, see above or $(LOGS)/$(2).log" >&2; exit 1; fi
endef

# A copy is exported from scratch and cleaned; neither may differ from what is there.
COPY := build/export
SYNC = rm -rf $(COPY) && mkdir -p $(COPY)/pkg/designloop && cp settings.ini _quarto.yml $(COPY) && cp -R nbs $(COPY)/nbs && \
  cp pkg/designloop/__init__.py $(COPY)/pkg/designloop/ && ( cd $(COPY) && ../../$(BIN)/nbdev_export && ../../$(BIN)/nbdev_clean ) && \
  { diff -rq $(NOT_MODULES) pkg/designloop $(COPY)/pkg/designloop; diff -rq $(NOT_PAGES) nbs $(COPY)/nbs; true; } > $(LOGS)/differ && \
  [ ! -s $(LOGS)/differ ] && rm -rf $(COPY) || { cat $(LOGS)/differ; diff -r $(NOT_MODULES) pkg/designloop $(COPY)/pkg/designloop | head -n 40; \
  echo "The exported modules or the notebooks' metadata are behind the notebooks: run make prepare, look, and commit."; exit 1; }
NOT_MODULES := -x __pycache__ -x '*.json' -x '*.html' -x '*.css' -x '*.js'
NOT_PAGES := -x __pycache__ -x .ipynb_checkpoints -x runs

check-export: $(STAMP)
	$(call step,exported and clean,export,$(SYNC))

lint: $(STAMP) ## ruff over notebooks, package and tests
	$(call step,lint,lint,$(BIN)/ruff check nbs pkg tests setup.py)

check-docs: $(STAMP) ## the pages, their links, figures, sidebar and README, without Quarto
	$(call step,docs,docs,$(PY) -m designloop.docs check)

check-notebooks: $(STAMP) ## every library notebook runs
	$(call step,library notebooks,notebooks,$(PY) -m pytest -q -n $(WORKERS) --durations 10 tests/test_notebooks.py)

check-tests: $(STAMP)
	@$(PY) -m pytest -q -n $(WORKERS) --durations 10 --ignore tests/test_notebooks.py tests < /dev/null

clean: ## remove what the checks and the site leave behind (keeps .venv and runs/)
	@rm -rf build dist _docs _proc nbs/nbdev.yml .pytest_cache .ruff_cache .hypothesis
	@find nbs pkg tests -name __pycache__ -prune -exec rm -rf {} +
	@find nbs -name .ipynb_checkpoints -prune -exec rm -rf {} +
