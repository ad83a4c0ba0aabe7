CARGO ?= cargo
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release

.DEFAULT_GOAL := help
SEED ?= 1
MINUTES ?= 10
JOBS ?= 1
REPLICAS ?= 1

.PHONY: help run demo test bench ops compose dist chaos check fmt clippy doc shell envoy audit release

help:  ## This list
	@sed -n 's/^\([a-z]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 10

run: release  ## Everything on this machine until Ctrl-C; EDGE_PORT=…, see README.md, moves ports
	@scripts/fetch-envoy > /dev/null
	@exec "$(RELEASE)/tollgate-local" run

demo: release  ## The whole scenario by itself, on free ports
	@scripts/fetch-envoy > /dev/null
	@exec "$(RELEASE)/tollgate-local" demo

test: envoy  ## Every test, through real Envoys
	@scripts/install-test-tools
	@scripts/fetch-predecessor --try
	@with="$$(if scripts/postgres version > /dev/null 2>&1; then echo scripts/postgres run; fi)"; \
	if $(CARGO) nextest --version > /dev/null 2>&1; \
	then $$with $(CARGO) nextest run --workspace; \
	else $$with $(CARGO) test --workspace; fi
	@scripts/test-ops
	@scripts/test-kubernetes
	@scripts/test-dist
	@scripts/test-compose

# What ships is built as it ships, and then what measures, which builds some dependencies once more with other features. What
# criterion runs is built here as well, because the quarter of an hour is for measuring.
bench: release  ## What Tollgate costs, beside a bare server and what it replaces, into docs/PERFORMANCE.md; BENCH='--only check', see --help
	@scripts/install-test-tools
	@scripts/fetch-envoy > /dev/null
	@scripts/fetch-predecessor
	$(CARGO) build --release --locked -p tollgate-benches --bins --bench stages
	@exec "$(RELEASE)/tollgate-benches" $(BENCH)

ops:  ## Alerts, dashboard, unit, Kubernetes' documents and release archive alone
	@scripts/install-test-tools
	@scripts/test-ops
	@scripts/test-kubernetes
	@scripts/test-dist

compose:  ## docker-compose.yml alone: the images, the whole scenario, kills and all, with one Tollgate and with three
	@scripts/test-compose

dist:  ## dist/tollgate-<version>-<target>.tar.gz: the binary without symbols, manual, Envoy's files, ops/; and SHA256SUMS
	@scripts/dist

chaos: release  ## Kills and outages under load for MINUTES=10, from SEED=1 on, JOBS=1 rounds at once, each with REPLICAS=1; then the books must agree
	@scripts/fetch-envoy > /dev/null
	@exec "$(RELEASE)/tollgate-local" chaos --seed $(SEED) --minutes $(MINUTES) --jobs $(JOBS) --replicas $(REPLICAS)

check: fmt clippy test doc shell  ## What CI runs: format, clippy, tests, docs, the scripts

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets -- -D warnings

shell:
	@if command -v shellcheck > /dev/null; then shellcheck scripts/dist scripts/fetch-predecessor scripts/install-test-tools scripts/local-images scripts/postgres scripts/test-* .ci/run; \
	elif [ -n "$$CI" ]; then echo "shell: FAILED: there is no shellcheck" >&2; exit 1; \
	else echo "shell: SKIPPED: there is no shellcheck"; fi

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

envoy:  ## Every Envoy that the tests run, into .envoy/
	@scripts/fetch-envoy --all > /dev/null

audit:  ## Licences, sources, duplicates and advisories of the dependencies; installs cargo-deny, which takes minutes
	@$(CARGO) deny --version > /dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check

release:
	$(CARGO) build --release --locked -p tollgate -p tollgate-local --bins
