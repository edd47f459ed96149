# The commands that people and CI share. `make demo` runs the whole example here.

PYTHON ?= python3
export PYTHON

.PHONY: demo test page-test reliability torture lint fmt check

demo:
	@$(PYTHON) scripts/demo

check: lint test

lint:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --test reliability -- -D warnings
	cargo clippy --test torture -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps

fmt:
	cargo fmt

test:
	@scripts/test

# The figures of docs/RELIABILITY.md on this machine, with a release build: six minutes after it is built.
# RELIABILITY_ONLY=stalled (or storm, hung, gone, history) takes one, RELAY_BIN another relay.
reliability:
	@REDIS_SERVER=$$($(PYTHON) scripts/find-redis) && export REDIS_SERVER && \
		cargo test --release --test reliability

# Three relays, many clients, and a plan of faults that follows from a seed. TORTURE_SECONDS and
# TORTURE_SEED say how long and which plan; TORTURE_PROFILE=dev spares the release build.
torture:
	@REDIS_SERVER=$$($(PYTHON) scripts/find-redis) && export REDIS_SERVER && \
		cargo test --quiet --profile $${TORTURE_PROFILE:-release} --test torture

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
