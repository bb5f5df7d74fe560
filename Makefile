# make study    sets up .venv and runs a study            make test    sets up .venv and passes the tests
# make lab      JupyterLab on the notebooks               make figures draws figures/ again from records
# make ablation the parts of the method one by one        (RUNS=figures/records: from the committed ones)
#               (QUICK=1: the arms of stage 2)            make records keeps the records of runs/ there
# make clean    removes the runs and data of STUDY        Variables: STUDY=camvid SEEDS="0 1 2" JOBS=2
#                                                         LAB="--no-browser --port 8889" for a machine far away
#                                                         PROFILE=profiles/slurm: as jobs on a cluster
STUDY ?= minicity
SEEDS ?= 0
JOBS ?= 1
RUNS ?= runs
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
PYTHON ?= python3
PY := .venv/bin/python
WHERE := $(if $(PROFILE),--profile $(PROFILE),--cores $(CORES))
QUIET := PIP_DISABLE_PIP_VERSION_CHECK=1

# Keep big blocks of memory instead of handing them back to the system at every step, and in big pages: on two cores
# with glibc a training step took a fifth less time. Elsewhere they do nothing.
export MALLOC_MMAP_THRESHOLD_ = 2000000000
export MALLOC_TRIM_THRESHOLD_ = 4000000000
export THP_MEM_ALLOC_ENABLE = 1

.PHONY: study test lab figures records ablation clean benchmark

study: .venv/ready
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) -m snakemake --nolock --rerun-incomplete $(WHERE) \
	  --config study=$(STUDY) seeds="$(SEEDS)" jobs=$(JOBS) -q all
	@$(PY) -m b2ma_core.report.results $(STUDY) $(SEEDS)

test: .venv/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(CORES) --dist loadscope

lab: .venv/ready
	JUPYTER_PREFER_ENV_PATH=1 $(PY) -m jupyter lab --ServerApp.root_dir="$(CURDIR)" \
	  --LabApp.default_url=/lab/tree/notebooks/00_data.ipynb $(LAB)

figures: .venv/ready
	@$(PY) notebooks/run.py 07_figures --study $(STUDY) --seed $(firstword $(SEEDS)) -p runs=$(RUNS) \
	  -p "seeds=[$(shell echo $(SEEDS) | tr ' ' ',')]"
	@$(PY) notebooks/run.py 08_findings --study $(STUDY) --seed $(firstword $(SEEDS)) -p runs=$(RUNS)

# The records of all finished runs, to be committed.
records: .venv/ready
	$(PY) -m b2ma_core.study.records figures/records

# ARMS="plain mix": some arms alone. All of them take hours; QUICK=1 takes the rows of stage 2. Seeds as in
# params/ablation.yaml unless SEEDS is given.
PLAN := $(STUDY) $(if $(filter command line,$(origin SEEDS)),$(shell echo $(SEEDS) | tr ' ' ','),-)
ablation: .venv/ready
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) -m snakemake ablation --nolock --rerun-incomplete $(WHERE) -q all \
	  --config $$($(PY) -m b2ma_core.report.ablation config $(PLAN) $(if $(QUICK),quick) $(ARMS)) jobs=$(JOBS)
	@$(PY) -m b2ma_core.report.ablation table $(PLAN)

benchmark: .venv/ready
	$(PY) benchmarks/stage2_step.py
	$(PY) benchmarks/input_pipeline.py

clean:
	rm -rf "runs/$(STUDY)" "data/$(STUDY)"

.venv/ready: requirements.lock pyproject.toml
	@echo "setting up .venv: about 6 GB, of which torch with its CUDA libraries is 5.5; a few minutes"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv
	@$(QUIET) $(PY) -m pip install --quiet -r requirements.lock
	@$(QUIET) $(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch .venv/ready
	@echo "set up"
