# `make demo` and `make test` set up all they need on a fresh Debian 12 with Python 3.11 and package registries.
# Their environments are .venv and .venv-test, made from the hash-pinned files in requirements/ and made again
# only when those change. To use an environment of your own instead: make check TOOLS=/path/to/its/bin

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
EXPERIMENT ?= examples/mnist/experiment.toml
RUN_ARGS ?=
PYTEST_ARGS ?=
UPGRADE ?=
PACKAGES := fedless aggregator edge_runtime cloud_adapters

ifdef TOOLS
READY :=
else
TOOLS := .venv-test/bin
READY := .venv-test/.ready
endif
RUN := PATH="$(abspath $(TOOLS)):$$PATH"
PY := $(TOOLS)/python

.PHONY: help demo demo-mixed deb docs pictures record
.PHONY: test test-browser test-deploy test-long test-image test-roads test-proxy test-chaos test-runtimes
.PHONY: check fmt proto check-proto vectors check-vectors lock bench clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1 \t\2/p' Makefile | expand -t 22

demo: .venv/.ready ## train the MNIST CNN on ten local devices over mTLS, MQTT and gRPC
	@deploy/setup/apt.sh mosquitto bubblewrap
	.venv/bin/fedless experiment run $(EXPERIMENT) $(RUN_ARGS)

demo-mixed: .venv-mixed/.ready .venv-clouds/.locked .venv-clouds-tools/.locked ## six devices and four cloud functions in one masked federation
	@deploy/setup/apt.sh mosquitto bubblewrap
	FEDLESS_CLOUDS="$(CURDIR)" .venv-mixed/bin/fedless experiment run examples/mixed/experiment.toml $(RUN_ARGS)

test: $(READY) ## unit, property, contract, simulation, and real processes over mTLS and MQTT
	@deploy/setup/apt.sh mosquitto bubblewrap postgresql mtools dosfstools fdisk
	$(PY) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS) tests

test-long: $(READY) ## whole fleets that are killed in every phase, moved, restored; the random tests with more tries
	@deploy/setup/apt.sh mosquitto bubblewrap postgresql
	FEDLESS_LONG=1 $(PY) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS) -m long tests
	FEDLESS_LONG=1 $(PY) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS) tests/real/test_random_kills.py \
	  tests/simulation/test_anything.py tests/simulation/test_anything_late.py

test-runtimes: $(READY) .venv-runtimes/.locked ## the contract of TFLite runtimes on tflite-runtime 2.14 as well
	FEDLESS_TFLITE_RUNTIME_PYTHON=$(abspath .venv-runtimes/bin/python) $(PY) -m pytest $(PYTEST_ARGS) \
	  tests/contract/test_tflite_runtimes.py

test-chaos: $(READY) ## kill -9 of everything while a run goes on, drawn from a seed: FEDLESS_CHAOS_SEED, FEDLESS_CHAOS_KILLS
	@deploy/setup/apt.sh mosquitto bubblewrap postgresql
	FEDLESS_CHAOS=1 $(PY) -m pytest -s $(PYTEST_ARGS) tests/real/test_chaos.py

test-roll-over: $(READY) ## replace a running fleet's ticket key and authority, one device there and one away
	@deploy/setup/apt.sh mosquitto bubblewrap
	FEDLESS_ROLL_OVER=1 $(PY) -m pytest $(PYTEST_ARGS) tests/real/test_roll_over.py

CLOUD_TESTS := tests/contract/test_invokers.py tests/contract/test_packages.py tests/unit/cloud_adapters \
  tests/unit/aggregator/test_functions.py tests/unit/aggregator/test_invoke.py tests/real/test_functions.py \
  tests/real/test_mixed.py tests/real/test_helper_function.py

test-clouds: $(READY) .venv-clouds/.locked .venv-clouds-knative/.locked .venv-clouds-tools/.locked ## the cloud adapters on the platforms' own runtimes
	@deploy/setup/apt.sh mosquitto bubblewrap
	FEDLESS_CLOUDS="$(CURDIR)" $(PY) -m pytest $(PYTEST_ARGS) $(CLOUD_TESTS)

test-deploy: $(READY) .venv-deploy/.locked .venv-deploy-tools/.locked ## the chart, the compose file and the Dockerfile against schemas and linters
	FEDLESS_PYTHON="$(abspath $(PY))" FEDLESS_DEPLOY_TOOLS="$(CURDIR)/.venv-deploy-tools" \
	  .venv-deploy/bin/python -m pytest --noconftest -p no:cacheprovider -c deploy/helm/pytest.ini $(PYTEST_ARGS) tests/deploy

test-browser: $(READY) ## look at the dashboard with a real browser
	@deploy/setup/apt.sh mosquitto chromium
	FEDLESS_BROWSER="$$(command -v chromium)" $(PY) -m pytest $(PYTEST_ARGS) tests/real/test_browser.py

test-proxy: $(READY) ## run the tests behind a real haproxy and a real nginx
	@deploy/setup/apt.sh mosquitto haproxy nginx-light libnginx-mod-stream
	FEDLESS_PROXY_TEST=1 $(PY) -m pytest $(PYTEST_ARGS) tests/real/test_proxy.py

test-image: $(READY) ## boot a Raspberry Pi image in an emulator: join, train, lose power, deliver (long)
	@deploy/setup/apt.sh mosquitto mmdebstrap arch-test qemu-user-static qemu-system-arm mtools dosfstools fdisk xz-utils
	FEDLESS_IMAGE_TEST="$(CURDIR)/build/image" $(PY) -m pytest $(PYTEST_ARGS) tests/real/test_image_boot.py

test-roads: $(READY) ## install the Debian package and by pip in a Debian 13 chroot, join and train there (root)
	@deploy/setup/apt.sh mosquitto mmdebstrap
	FEDLESS_ROADS_TEST="$(CURDIR)/build/roads" $(PY) -m pytest -s $(PYTEST_ARGS) tests/real/test_roads.py

deb: $(READY) ## make the Debian package of the device, for arm64 and amd64
	$(TOOLS)/fedless image deb --out dist

check: $(READY) check-proto check-vectors ## lint, format, types, layers; stubs and vectors regenerate to the same bytes
	$(TOOLS)/ruff check .
	$(TOOLS)/ruff format --check .
	$(PY) -m mypy
	$(PY) -m mypy tests
	$(RUN) lint-imports

docs: .venv-docs/.ready ## build the documentation into build/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

pictures: $(READY) ## take the documentation's pictures of an experiment that runs for it
	@deploy/setup/apt.sh mosquitto bubblewrap chromium
	FEDLESS_BROWSER="$$(command -v chromium)" $(PY) docs/generate/pictures.py docs/pictures
	$(PY) docs/generate/curves.py docs/pictures/convergence.json docs/pictures/convergence.svg > /dev/null

fmt: $(READY) ## format, and mend what the linter can mend
	$(TOOLS)/ruff check --fix .
	$(TOOLS)/ruff format .

PROTOS := $(sort $(wildcard proto/fedless/v1/*.proto))
SERVICES := $(shell grep -l '^service ' $(PROTOS) /dev/null)
define generate
	mkdir -p $(1)
	$(RUN) python -m grpc_tools.protoc -Iproto --python_out=$(1) --mypy_out=quiet:$(1) $(PROTOS)
	$(RUN) python -m grpc_tools.protoc -Iproto --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) $(SERVICES)
endef

proto: $(READY) ## generate fedless/v1 from proto/
	@rm -f fedless/v1/*_pb2*.py fedless/v1/*_pb2*.pyi
	@$(call generate,.)

check-proto: $(READY)
	@rm -rf build/proto
	@$(call generate,build/proto)
	@diff -r -x __pycache__ -x __init__.py build/proto/fedless/v1 fedless/v1 \
	  || { echo 'fedless/v1 is not what proto/ generates: run "make proto" and commit the result' >&2; exit 1; }
	@rm -rf build/proto

record: $(READY) ## for a release: keep the wire's schema and a real conversation of this version
	@deploy/setup/apt.sh mosquitto bubblewrap
	version=$$($(PY) -c 'import fedless; print(fedless.__version__)'); \
	$(PY) -m tests.recordings.schema tests/recordings/$$version.json; \
	$(PY) -m tests.recordings.conversation tests/recordings/conversations/$$version.json

vectors: $(READY) ## generate the test vectors
	$(PY) -m tests.vectors.make_vectors tests/vectors

check-vectors: $(READY)
	@rm -rf build/vectors; mkdir -p build/vectors
	@$(PY) -m tests.vectors.make_vectors build/vectors
	@for file in build/vectors/*.json; do diff -q "$$file" "tests/vectors/$${file##*/}" \
	  || { echo 'the vectors are not what the code makes: has the protocol changed? then run "make vectors"' >&2; exit 1; }; \
	done
	@rm -rf build/vectors

COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" $(TOOLS)/uv pip compile -q --no-config --universal \
  --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate $(UPGRADE) \
  --constraint requirements/constraints.txt
LOCK = $(COMPILE) pyproject.toml --group build

lock: $(READY) ## pin every dependency with its hashes; newer releases: make lock UPGRADE=--upgrade
	$(LOCK) --extra aggregator --extra edge --output-file requirements/demo.txt
	$(LOCK) --constraint requirements/demo.txt --extra aggregator --extra edge --extra authoring --extra parquet \
	  --extra images --extra aws --extra google --extra azure --extra azure-runtime --extra objects \
	  --extra postgresql --extra privacy --extra tracing --extra tensorboard --extra mlflow --extra dev \
	  --output-file requirements/test.txt
	$(LOCK) --constraint requirements/test.txt --extra aggregator --extra edge --extra aws --extra google \
	  --output-file requirements/mixed.txt
	$(LOCK) --constraint requirements/test.txt --extra edge requirements/clouds.in --output-file requirements/clouds.txt
	$(LOCK) --constraint requirements/test.txt --extra edge requirements/clouds-knative.in \
	  --output-file requirements/clouds-knative.txt
	$(COMPILE) requirements/clouds-emulator.in --no-deps --output-file requirements/clouds-emulator.txt
	$(COMPILE) --constraint requirements/test.txt cloud_adapters/handlers/requirements.in \
	  --output-file cloud_adapters/handlers/requirements.txt
	$(COMPILE) --no-deps --constraint requirements/test.txt cloud_adapters/handlers/objects.in \
	  --output-file cloud_adapters/handlers/objects.txt
	$(COMPILE) --constraint requirements/test.txt fedless/helper/entries/requirements.in \
	  --output-file fedless/helper/entries/requirements.txt
	$(COMPILE) --constraint requirements/test.txt --constraint fedless/helper/entries/requirements.txt \
	  fedless/helper/entries/postgresql.in --output-file fedless/helper/entries/postgresql.txt
	$(LOCK) --constraint requirements/test.txt --extra aggregator --extra edge --extra helper --extra postgresql \
	  --extra objects --extra privacy --extra tracing --extra functions --extra aws --extra google --extra azure \
	  --output-file requirements/service.txt
	$(LOCK) --constraint requirements/test.txt --extra aggregator --extra edge requirements/docs.in \
	  --output-file requirements/docs.txt
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(TOOLS)/uv pip compile -q --no-config --python-version 3.13 --generate-hashes \
	  --python-platform aarch64-unknown-linux-gnu --no-emit-index-url --no-annotate $(UPGRADE) --extra edge \
	  --constraint requirements/constraints.txt --constraint requirements/test.txt pyproject.toml \
	  --output-file fedless/image/requirements.txt
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(TOOLS)/uv pip compile -q --no-config --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate $(UPGRADE) requirements/deploy.in --output-file requirements/deploy.txt
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(TOOLS)/uv pip compile -q --no-config --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate $(UPGRADE) requirements/runtimes.in --output-file requirements/runtimes.txt

bench: .venv/.ready ## measure what performance claims rest on; JSON in benchmarks/out
	@deploy/setup/apt.sh mosquitto bubblewrap
	@mkdir -p benchmarks/out
	@for script in benchmarks/bench_*.py; do echo "$$script" >&2; \
	  .venv/bin/python "$$script" > "benchmarks/out/$$(basename "$$script" .py).json"; done

clean: ## remove the environments, caches and build products
	rm -rf .venv .venv-* build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

.venv/.locked: requirements/demo.txt
	@PYTHON=$(PYTHON) deploy/setup/venv.sh .venv $<
	@touch $@

.venv-mixed/.locked: requirements/mixed.txt
	@PYTHON=$(PYTHON) deploy/setup/venv.sh .venv-mixed $<
	@touch $@

.venv-test/.locked: requirements/test.txt
	@PYTHON=$(PYTHON) deploy/setup/venv.sh .venv-test $<
	@touch $@

.venv-runtimes/.locked: requirements/runtimes.txt
	@PYTHON=$(PYTHON) deploy/setup/venv.sh .venv-runtimes $<
	@touch $@

.venv-docs/.locked: requirements/docs.txt
	@PYTHON=$(PYTHON) deploy/setup/venv.sh .venv-docs $<
	@touch $@

.venv-deploy/.locked: requirements/deploy.txt
	@PYTHON=$(PYTHON) deploy/setup/venv.sh .venv-deploy $<
	@touch $@

.venv-deploy-tools/.locked: $(wildcard requirements/deploy-node/*)
	@command -v npm >/dev/null || deploy/setup/apt.sh nodejs npm
	@rm -rf .venv-deploy-tools && mkdir .venv-deploy-tools && cp requirements/deploy-node/*.json .venv-deploy-tools/
	@npm ci --prefix .venv-deploy-tools --no-audit --no-fund --silent
	@touch $@

.venv-clouds/.locked: requirements/clouds.txt
	@PYTHON=$(PYTHON) deploy/setup/venv.sh .venv-clouds $<
	@touch $@

.venv-clouds-knative/.locked: requirements/clouds-knative.txt
	@PYTHON=$(PYTHON) deploy/setup/venv.sh .venv-clouds-knative $<
	@touch $@

.venv-clouds-tools/.locked: .venv-clouds/.locked requirements/clouds-emulator.txt $(wildcard requirements/clouds-node/*)
	@deploy/setup/cloud-tools.sh .venv-clouds-tools .venv-clouds
	@touch $@

%/.ready: %/.locked pyproject.toml
	@$*/bin/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@
