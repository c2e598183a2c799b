# Everything a fresh Debian-like machine with the Rust, Go, Node.js and Python toolchains needs to build, hear and test callreel.
# Tools and build products live in $CALLREEL_CACHE (default ~/.cache/callreel), so that checkouts share them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help tools build demo test faults soak bench fmt fmt-check clippy check-libwebrtc lint-scripts lint-deploy lint doc deny clean-recordings

CALLREEL_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/callreel
CARGO_TARGET_DIR ?= $(CALLREEL_CACHE)/target
export CALLREEL_CACHE CARGO_TARGET_DIR
# No client that a test forgot to give keys asks the machine it runs on.
export AWS_EC2_METADATA_DISABLED := true

CARGO := cargo
FEATURES := --locked --features testkit,aac
SHELL_SCRIPTS := .ci/run tools/lib.sh $(shell grep -rlE '^\#!.*bash' tools)
PYTHON_SCRIPTS := tests tools $(shell grep -rlE '^\#!.*python' tools)
LINT = source tools/lib.sh; PATH=$$(venv_dir requirements-lint)/bin:$$PATH

help: ## what can be made
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

tools: ## install every pinned tool
	@tools/install

build: ## the binary to ship, in the target directory's dist/
	@tools/install rust debian
	$(CARGO) build --profile dist --locked

demo: ## record a conversation on a real LiveKit server into an S3 bucket, and copy it to recordings/
	@tools/install rust debian livekit versitygw
	@tools/demo

test: ## everything that must never break, a real server and the official SDK included
	@tools/install rust debian livekit storage postgres python http formats quality
	$(CARGO) test $(FEATURES)

faults: ## the tests again, with large counts of kills, cuts and losses
	@tools/install rust debian livekit storage postgres python http formats quality
	CALLREEL_TIER=faults $(CARGO) test --release $(FEATURES)

soak: ## the tests again, with minutes of churn
	@tools/install rust debian livekit storage postgres python http formats quality
	CALLREEL_TIER=soak $(CARGO) test --release $(FEATURES)

bench: ## the benches; read BENCHMARKS.md
	@tools/install rust debian
	$(CARGO) bench $(FEATURES)

fmt: ## format the code
	@tools/install rust lint
	$(CARGO) fmt
	@$(LINT); ruff format --quiet $(PYTHON_SCRIPTS)

fmt-check:
	@tools/install rust lint
	$(CARGO) fmt --check
	@$(LINT); ruff format --check $(PYTHON_SCRIPTS)

lint: clippy lint-scripts lint-deploy ## clippy, shellcheck, ruff, hadolint

clippy:
	@tools/install rust debian
	$(CARGO) clippy $(FEATURES) --all-targets -- -D warnings

check-libwebrtc: ## types and lints of the optional engine libwebrtc, without the download that building it takes
	@tools/install rust debian
	DOCS_RS=1 $(CARGO) clippy --locked --features libwebrtc --lib --bins -- -D warnings

lint-scripts:
	@tools/install lint
	@$(LINT); shellcheck $(SHELL_SCRIPTS)
	@$(LINT); ruff check --quiet $(PYTHON_SCRIPTS)
	@$(LINT); hadolint Dockerfile

lint-deploy: ## chart, manifests, composition, unit and dashboard of deploy/
	@tools/install deploy
	@tools/lint-deploy

doc: ## the API documentation, where a broken link is an error
	@tools/install rust debian
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc $(FEATURES) --no-deps

deny: ## licences, banned crates and sources of every dependency
	@tools/install rust deny
	@source tools/lib.sh; "$$cargo_deny_dir/bin/cargo-deny" --features aac --log-level error check licenses bans sources
	@source tools/lib.sh; "$$cargo_deny_dir/bin/cargo-deny" --features libwebrtc --log-level error check licenses sources

clean-recordings: ## delete recordings/
	rm -rf recordings
