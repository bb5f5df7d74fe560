# make study    sets up .venv and runs a study            make test    sets up .venv and runs the tests
# make lab      JupyterLab on the notebooks               make figures draws figures/ again from records
# make ablation the parts of the method one by one        (RUNS=figures/records: from the committed ones)
#               (QUICK=1: mixes and hard patches)         make records keeps the records of runs/ there
# make clean    removes runs, arms and data of STUDY      make notebooks keeps a run's executed notebooks there
# make site     a run's executed notebooks as pages       make accept  the code has changed, STUDY's results have not
#                                                         Variables: STUDY=camvid SEEDS="0 1 2" JOBS=2
#                                                         LAB="--no-browser --port 8889" for a machine far away
#                                                         PROFILE=profiles/slurm: as jobs on a cluster
STUDY ?= minicity
SEEDS ?= 0
JOBS ?= 1
RUNS ?= runs
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
PYTHON ?= python3
PY := .venv/bin/python
QUIET := PIP_DISABLE_PIP_VERSION_CHECK=1

# What make is told is checked before anything starts (b2ma_core/study/check.py, from the environment), and what is
# started ends with make, however make ends.
export STUDY SEEDS JOBS RUNS CORES ARMS PROFILE
CHECK := $(PY) -m b2ma_core.study.check
START := exec env B2MA_PARENT=$$PPID PATH="$$PWD/.venv/bin:$$PATH" $(PY)
WHERE := $(if $(PROFILE),--profile "$(PROFILE)",--cores $(CORES)) --nolock --rerun-incomplete
SAY := -q host rules progress reason

# Keep big blocks of memory instead of handing them back to the system at every step, and in big pages: on two cores
# with glibc a training step took a fifth less time. Elsewhere they do nothing.
export MALLOC_MMAP_THRESHOLD_ = 2000000000
export MALLOC_TRIM_THRESHOLD_ = 4000000000
export THP_MEM_ALLOC_ENABLE = 1

.PHONY: study test lab figures records notebooks ablation site accept clean benchmark

study: .venv/ready
	@$(CHECK) study
	@$(START) -m snakemake $(WHERE) --config study=$(STUDY) seeds="$(SEEDS)" jobs=$(JOBS) $(SAY)
	@$(PY) -m b2ma_core.report.results $(STUDY) $(SEEDS)

test: .venv/ready
	@$(CHECK) test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(CORES) --dist loadscope --durations=10

lab: .venv/ready
	@$(CHECK) lab
	JUPYTER_PREFER_ENV_PATH=1 $(PY) -m jupyter lab --ServerApp.root_dir="$$PWD" \
	  --LabApp.default_url=/lab/tree/notebooks/00_data.ipynb $(LAB)

comma := ,
LIST = $(subst $(comma), ,$(SEEDS))
figures: .venv/ready
	@$(CHECK) figures
	@$(START) notebooks/run.py 07_figures --study $(STUDY) --seed $(firstword $(LIST)) -p "runs=$(RUNS)" \
	  -p "seeds=[$$(echo $(LIST) | tr ' ' ,)]"
	@$(START) notebooks/run.py 08_findings --study $(STUDY) --seed $(firstword $(LIST)) -p "runs=$(RUNS)"

# The records of all finished runs, to be committed.
records: .venv/ready
	@$(CHECK) records
	$(PY) -m b2ma_core.study.records figures/records

# The executed notebooks of a run, clean and each under 400 kB, to be committed.
notebooks: .venv/ready
	@$(CHECK) notebooks
	@$(PY) -m b2ma_core.report.executed $(STUDY) $(firstword $(LIST)) figures/notebooks

# ARMS="plain mix": some arms alone. All of them take hours; QUICK=1 takes those of mixes and hard patches. Seeds as in
# params/ablation.yaml unless SEEDS is given.
ABLATION := $(PY) -m b2ma_core.report.ablation
PLAN := $(STUDY) $(if $(filter file,$(origin SEEDS)),-,"$(SEEDS)")
ablation: .venv/ready
	@$(CHECK) ablation
	@config=$$($(ABLATION) config $(PLAN) $(if $(QUICK),quick) $(ARMS)) && \
	  $(START) -m snakemake ablation $(WHERE) --config $$config jobs=$(JOBS) $(SAY)
	@$(ABLATION) table $(PLAN)

# The executed notebooks of a run as pages, with figures and table: site/<study>/<seed>/index.html
site: .venv/ready
	@$(CHECK) site
	@$(PY) -m b2ma_core.report.site $(STUDY) $(firstword $(LIST))

benchmark: .venv/ready
	$(PY) benchmarks/stage2_step.py
	$(PY) benchmarks/input_pipeline.py

# After a change of code that makes the same of what was trained, say a mix beside the others: it is not trained again.
accept: .venv/ready
	@$(PY) -m b2ma_core.study.arms accept "$(STUDY)"

# FROM=05_self_distill: that notebook's outputs and all later ones alone, of every seed and arm. What was put into
# data/ by hand stays, and so do the answers of a service, which may have been paid for.
clean:
	@case "$(STUDY)" in ""|*[!A-Za-z0-9_+-]*) echo "make clean: STUDY: '$(STUDY)' is no name of a study" >&2; exit 1;; esac
ifdef FROM
	@$(PY) -m b2ma_core.study.arms clean "$(STUDY)" "$(FROM)"
else
	rm -rf "runs/$(STUDY)" "runs/$(STUDY)+"*
	@cd "data/$(STUDY)" 2>/dev/null && rm -rf outbox problems.txt .lock && \
	  for part in source_train source_val target_train target_val target_test; do \
	    (cd $$part 2>/dev/null && rm -f images.npy labels.npy labels.bin index.json); rmdir $$part 2>/dev/null; \
	  done; cd "$(CURDIR)/data" 2>/dev/null && rmdir "$(STUDY)" 2>/dev/null || true
endif

# PyPI's torch for Linux brings CUDA's libraries; pip prefers PyTorch's own CPU build where its index is named too.
CPU_BUILD := $(findstring /whl/cpu,$(PIP_EXTRA_INDEX_URL) $(PIP_INDEX_URL))
GB := $(if $(CPU_BUILD),2,6)
DOWNLOADS := $(if $(CPU_BUILD),1,3)
.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	@[ -e .venv ] || $(PYTHON) -c 'import shutil, sys; free = shutil.disk_usage(".").free / 1e9; sys.exit(free < $(GB) + $(DOWNLOADS) + 1 and f"setting up .venv takes about $(GB) GB here and $(DOWNLOADS) more for downloads, {free:.1f} GB are free: free some space, or make .venv a link to a folder on another disk")'
	@echo "setting up .venv: about $(GB) GB$(if $(CPU_BUILD),,$(comma) of which torch with its CUDA libraries is 5.5); a few minutes"
	@$(PYTHON) -m venv .venv
	@$(QUIET) $(PY) -m pip install --quiet -r requirements.lock
	@$(QUIET) $(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch .venv/ready
	@echo "set up"
