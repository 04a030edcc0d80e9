# make demo    train a small BLIP on bundled pictures (about two minutes on 2 cores) and write demo/report.html
# make capfilt-demo   CapFilt on drawings with known noise, three seeds (40 minutes on 2 cores)
# make train-demo  pre-train and fine-tune on the emoji set through the launcher (15 minutes on 2 cores; fetches 3 Debian packages)
# make test    lint, then every test
# make bench   the quick benchmarks, and build/bench.html, the page of them; make bench-full is everything
# make setup   only the virtual environment .venv with everything in it

VENV := .venv
BIN := $(VENV)/bin
# A process for each core, at most 4: every one has a torch of its own, and whole files to itself.
SIDE_BY_SIDE := $(BIN)/python -m pytest -n $(shell nproc) --maxprocesses 4 --dist loadfile
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup native demo train-demo capfilt-demo test lint format bench bench-full clean

demo: native
	$(BIN)/blip-fast demo

capfilt-demo: native
	test -f build/emoji/train_web.json || $(BIN)/blip-fast data emoji --output build/emoji
	$(BIN)/blip-fast capfilt demo build/emoji --output build/capfilt-demo

train-demo: native
	$(BIN)/blip-fast train-demo --data build/emoji --output build/train-demo

test: native lint
	$(SIDE_BY_SIDE)
	TRITON_INTERPRET=1 $(SIDE_BY_SIDE) -m triton tests/ops

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run -Werror

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' | xargs $(BIN)/clang-format -i

bench: native
	$(BIN)/blip-fast bench run --quick --json build/bench.json
	$(BIN)/blip-fast bench report build/bench.json --kernels benchmarks/results/aot.json --output build/bench.html

bench-full: native
	$(BIN)/blip-fast bench run --full --json build/bench-full.json
	$(BIN)/blip-fast bench report build/bench-full.json --kernels benchmarks/results/aot.json --output build/bench-full.html

setup: native

# Rebuilds what changed in csrc/; there is no build folder where no compiler was found.
native: $(READY)
	@test ! -d build/cmake || $(BIN)/cmake --build build/cmake > build/native.log || { cat build/native.log; exit 1; }

$(READY): pyproject.toml setup.py constraints.txt CMakeLists.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'the versions in constraints.txt need python3 >= 3.11'; exit 1; }
	@python3 -c 'import ensurepip' 2>/dev/null || { echo 'python3 has no venv module: apt-get install python3-venv'; exit 1; }
	test -x $(BIN)/pip || python3 -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt setuptools cmake ninja pybind11 torch
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info blip_fast/*.so blip_fast/_build.json
