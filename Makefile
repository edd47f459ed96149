# The commands that people and CI share. `make demo` runs the whole example here.

PYTHON ?= python3
export PYTHON

.PHONY: demo test page-test lint fmt check bench bench-lint

demo:
	@$(PYTHON) scripts/demo

check: lint test

lint:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps

fmt:
	cargo fmt

test:
	@scripts/test

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
