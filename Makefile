# The commands that people and CI share. `make demo` runs the whole example here.

PYTHON ?= python3
export PYTHON

.PHONY: demo test page-test reliability torture bench bench-lint lint fmt check image chart chart-test pod-test

demo:
	@$(PYTHON) scripts/demo

check: lint test

lint:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --test reliability --test torture -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps

fmt:
	cargo fmt

test:
	@scripts/test

# The figures of docs/RELIABILITY.md on this machine, with a release build: nine minutes after it is built.
# RELIABILITY_ONLY=stalled (or storm, hung, gone, history, hostile) takes one, RELAY_BIN another relay.
reliability:
	@REDIS_SERVER=$$($(PYTHON) scripts/find-redis) && export REDIS_SERVER && \
		cargo test --release --test reliability

# Three relays, many clients, and a plan of faults that follows from a seed. TORTURE_SECONDS and
# TORTURE_SEED say how long and which plan; TORTURE_PROFILE=dev spares the release build.
torture:
	@REDIS_SERVER=$$($(PYTHON) scripts/find-redis) && export REDIS_SERVER && \
		cargo test --quiet --profile $${TORTURE_PROFILE:-release} --test torture

# Half an hour, and the machine should have nothing else to do; docs/PERFORMANCE.md says more.
bench:
	@$(PYTHON) bench/run

bench-lint:
	cargo fmt --check --manifest-path bench/Cargo.toml
	cargo clippy --manifest-path bench/Cargo.toml --target-dir $${CARGO_TARGET_DIR:-target}/bench --all-targets -- -D warnings
	cargo test --manifest-path bench/Cargo.toml --target-dir $${CARGO_TARGET_DIR:-target}/bench

# The page in a real browser, where there is one.
page-test:
	@if ! command -v chromedriver >/dev/null; then \
		echo "page test skipped: no chromedriver on PATH"; \
	else \
		if [ -z "$$RELAY_BIN" ]; then \
			cargo build && RELAY_BIN=$${CARGO_TARGET_DIR:-target}/debug/relay && export RELAY_BIN; \
		fi && \
		python=$$($(PYTHON) scripts/environment.py \
			examples/legacy-api/requirements.txt tests/page/requirements.txt) && \
		PYTHONDONTWRITEBYTECODE=1 "$$python" -m pytest -p no:cacheprovider tests/page; \
	fi

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
REVISION = $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
# docker, podman or buildah
ENGINE ?= docker
IMAGE ?= relay

image:
	$(ENGINE) build --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) \
		--tag $(IMAGE):$(VERSION) .

# The chart as an archive in target/chart.
chart:
	@helm=$$($(PYTHON) scripts/tools.py helm) && \
	"$$helm" lint --strict helm/relay --values helm/relay/ci/sidecar-values.yaml && \
	"$$helm" package helm/relay --destination $${CARGO_TARGET_DIR:-target}/chart

chart-test:
	@scripts/chart-test

# The image and the example's pod, for real, where buildah and podman can run. Takes minutes.
pod-test:
	@$(PYTHON) scripts/pod-test
