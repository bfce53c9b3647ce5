# vmferry. `make help` lists what there is to make.

GO          ?= go
STATICCHECK := v0.7.0

# Build tags that fit the C libraries of this machine. None is needed yet; the
# backends that link C add theirs here, and every target uses them.
TAGS :=
TAGFLAG := $(if $(TAGS),-tags=$(TAGS))

# Programs that make network namespaces and mounts run as root: through sudo
# where make does not. They are built as the caller, so that nothing in the
# caller's caches belongs to root.
ROOT := $(shell [ "$$(id -u)" = 0 ] || echo 'sudo -E env PATH="$(PATH)" VMFERRY_CACHE="$(CACHE)"')
CACHE := $(or $(VMFERRY_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vmferry)
EXEC := $(if $(ROOT),-exec '$(ROOT)')

# Packages without cgo, which must build without it; the race detector runs on
# those that are ours to race.
PURE := ./share/... ./migrate ./migrate/nbd ./migrate/migratetest ./tuning ./tuning/domain ./examples/quickstart ./examples/whatif
RACE := ./share/... ./migrate ./migrate/nbd

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
.DEFAULT_GOAL := help
.PHONY: help install demo quickstart test unit race lint fmt tidy bench microbench print-tags clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: ## install what the laboratory needs (QEMU, libvirt, a guest kernel, NBD tools)
	@./internal/lab/install.sh

demo: install ## move a running guest between two hosts, live, and back
	@mkdir -p build
	@$(GO) build $(TAGFLAG) -o build/livemigrate ./examples/livemigrate
	@$(ROOT) build/livemigrate -lab

quickstart: ## move a disk that is being written; needs nothing but Go
	@CGO_ENABLED=0 $(GO) run ./examples/quickstart

test: install lint ## run all tests, those of the laboratory included
	CGO_ENABLED=0 $(GO) build $(PURE)
	@$(GO) build -o build/testsum ./internal/testsum
	$(GO) test $(TAGFLAG) -json -count=1 -p 1 -timeout 30m $(EXEC) ./... | build/testsum
	@$(MAKE) --no-print-directory race

race: ## run the tests of the pure packages under the race detector
	@$(GO) build -o build/testsum ./internal/testsum
	$(GO) test -race -short -json -count=1 -timeout 20m $(RACE) | build/testsum

unit: ## run the tests that need neither root nor a laboratory
	$(GO) test $$($(GO) list $(PURE)) . ./internal/testsum

lint: build/bin/staticcheck ## gofmt, vet, staticcheck, go mod tidy
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt would change:"; echo "$$unformatted"; exit 1; }
	$(GO) vet $(TAGFLAG) ./...
	build/bin/staticcheck $(TAGFLAG) ./...
	$(GO) mod tidy -diff

build/bin/staticcheck: Makefile
	@GOBIN=$(CURDIR)/build/bin $(GO) install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK)
	@touch $@

fmt: ## format the sources
	gofmt -w $$(git ls-files '*.go')

tidy: ## bring go.mod and go.sum in line with the sources
	$(GO) mod tidy

bench: install ## measure the disk engine beside other tools; ONLY=name, BENCHFLAGS
	$(GO) run ./internal/bench -only '$(ONLY)' $(BENCHFLAGS)

microbench: ## run the benchmarks of the pure packages
	$(GO) test $(TAGFLAG) -run '^$$' -bench . -benchmem $$($(GO) list $(PURE))

print-tags: ## print the Go build tags that fit this machine's libraries
	@echo $(TAGS)

clean: ## remove what was built here
	rm -rf build
