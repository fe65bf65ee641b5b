# strata: what a newcomer needs. `make` alone explains the targets.
.DEFAULT_GOAL := help
.PHONY: help demo build test test-unit test-system test-install bench bench-serve bench-streams bench-store bench-mesh bench-cluster fmt lint fuzz install clean deps models peers
SHELL := /bin/bash
PREFIX ?= /usr/local

help: ## this text
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  Presets for CMake: release debug asan tsan portable cuda (cmake --preset NAME)."
	@echo "  Downloads and the llama.cpp build are kept in ~/.cache/strata (STRATA_CACHE=DIR puts them elsewhere)."

demo: ## from a bare machine to a model that answers: installs, fetches, builds, runs
	@scripts/demo.sh

deps: ## the Debian packages that building and testing need
	@scripts/install-deps.sh build test

build: ## build everything (release)
	@scripts/install-deps.sh build
	@scripts/build.sh release

models: build ## fetch the test models and make their variants
	@scripts/install-deps.sh test
	@scripts/test-models.sh

peers: ## build llama.cpp's own programs that tests and benchmarks of the mesh run
	@scripts/install-deps.sh build
	@scripts/build-llama.sh peers >/dev/null

test: models peers ## run all tests; installs what they need
	@scripts/test.sh all

test-unit: build ## only the tests beside the code
	@scripts/install-deps.sh test && scripts/test-models.sh && scripts/test.sh unit

test-system: models peers ## only the whole-system tests
	@scripts/test.sh system

test-install: ## build the portable tree, install it, move it, run it
	@scripts/install-deps.sh build test
	@scripts/test-install.sh

bench: bench-serve bench-streams bench-store bench-mesh bench-cluster ## all benchmarks (about an hour); tables, and JSON in bench/out/

bench-serve: models ## decode, prefill and latency through strata serve, beside llama-server
	@bench/run.sh serve

bench-streams: models ## 1,000 streams at once, 1,000 waiting requests, memory
	@bench/run.sh streams

bench-store: models ## import beside a SHA-256 pass, load beside llama.cpp's load
	@bench/run.sh store

bench-mesh: models peers ## one model over executors, beside ggml-rpc-server and a local run; how weights get there
	@bench/run.sh mesh
	@bench/run.sh mesh_weights

bench-cluster: models ## machines that join, and requests that enter at another node
	@bench/run.sh cluster

fmt: ## format the C++ code
	@scripts/install-deps.sh lint
	@git ls-files '*.h' '*.cpp' '*.c' | xargs clang-format-14 -i

lint: ## formatting, warnings as errors, headers by themselves, clang-tidy, shellcheck
	@scripts/install-deps.sh build lint
	@scripts/lint.sh

fuzz: ## fuzz what untrusted bytes reach, 60 seconds each (FUZZ_SECONDS=N FUZZERS="frame op_check gguf")
	@scripts/install-deps.sh build fuzz
	@scripts/fuzz.sh

install: ## a relocatable tree in PREFIX (/usr/local) that runs on another CPU of this kind
	@scripts/install-deps.sh build
	@scripts/build.sh portable
	@cmake --install build/portable --prefix "$(DESTDIR)$(PREFIX)" >/dev/null
	@echo "installed in $(DESTDIR)$(PREFIX); try $(DESTDIR)$(PREFIX)/bin/strata --help"

clean: ## remove what was built in this tree (the cache stays)
	@rm -rf build bench/out
