# mirror-agent: the commands that people use.  `make help` lists them.
SHELL    := /bin/bash
DESTDIR  ?=
HOST     := tests/box/box
RUN      := $(HOST) run --
AGENT    ?= package
BOXES    ?= $(shell nproc)
# the journal and its fields, podman and D-Bus that go away, namespaces, a boot without the agent or the internet, renewal
# at boot; what the container once did differently: folders that are exchanged, what reaches systemd (bad_input), the
# command, its completion and signals (command_line, warm); mounts (published_folder). The last four take 6.5 minutes on
# two busy cores; what is left out proves the pods or what is computed, the same code in both
CONTAINED := $(addprefix tests/system/test_,five_mirrors.py offline.py faults.py certificate_life.py bad_input.py \
    command_line.py warm.py published_folder.py)

.PHONY: help install rpm demo test lint unit golden golden-update packaging cluster browser system contained beside bench host clean

help:            ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo:            ## the appliance at work, also without internet (root)
	@tests/box/host-packages
	@tests/box/demo

test: host       ## everything that is promised, checked (root)
	@$(HOST) build
	@$(MAKE) --no-print-directory -j2 system beside

beside:          # all the rest, one by one while the system tests run; what each said is shown in one piece at its end
	@$(MAKE) --no-print-directory --output-sync=recurse \
	    $(addprefix beside-,lint unit golden packaging contained browser cluster)

beside-%:
	@printf '\n== make %s\n' $*
	@$(MAKE) --no-print-directory $*

host:            # what this machine needs to build and boot the test host
	@tests/box/host-packages

lint:            ## ruff, mypy --strict, import-linter
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) env PYTHONPATH=agent lint-imports

unit:            ## the quick loop: pure floors, files on disk
	@$(RUN) python3 -m pytest -q tests/unit

golden:          ## rendered files, checked by podman's own quadlet
	@$(RUN) python3 -m pytest -q tests/golden

packaging:       ## the RPM, man pages and completions, against the code
	@$(RUN) python3 -m pytest -q tests/package

golden-update:   ## write the golden outputs anew: read the diff
	@$(RUN) env GOLDEN_UPDATE=1 python3 -m pytest -q tests/golden

cluster:         ## what a cluster is told, against a real kube-apiserver
	@$(HOST) run --cluster -- python3 -m pytest -q tests/cluster

browser:         ## the published page, in Chromium
	@$(HOST) run --browser -- python3 -m pytest -q tests/browser

system:          ## the promises, on a booted host (root)
	@BOXES=$(BOXES) tests/box/pytest tests/box tests/system --agent=$(AGENT)

contained:       ## those that a container could break (root)
	@BOX=$${BOX:-main}-contained BOXES= tests/box/pytest --agent=container $(CONTAINED)

bench: host      ## beside the recipe and plain nginx; BENCH=--quick (root)
	@PYTHONPATH=tests python3 -m bench $(BENCH)

rpm: host        ## the package, in build/rpm: same tree, same bytes
	@$(RUN) packaging/make-rpm build/rpm
	@ls build/rpm

install:         ## into DESTDIR what the package has; needs go-md2man, typer
	@packaging/build build/made
	@packaging/install "$(DESTDIR)" build/made

clean:           ## stop the test host and drop what was built for it
	@$(HOST) down
	@$(HOST) clean
