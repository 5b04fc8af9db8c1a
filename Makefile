# cardea: `make demo` shows it, `make test` proves it.

GO      ?= go
BIN     := bin/cardea
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME ?= 5s

.PHONY: build demo test lint fuzz guest bench gen image tools clean

build: $(BIN)

# Always run: go knows better than make what is up to date.
.PHONY: $(BIN)
$(BIN):
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o $(BIN) ./cmd/cardea

demo: build
	$(BIN) demo

# What the tests need beside Go: gcc for the race detector, and the real servers
# and clients that they talk to. test/setup says what it installs.
tools:
	test/setup

test: tools lint build
	CARDEA_BIN=$(CURDIR)/$(BIN) test/run
	FUZZTIME=$(FUZZTIME) test/fuzz

lint:
	@out="$$(gofmt -l .)"; if [ -n "$$out" ]; then echo "gofmt would change:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...

fuzz:
	FUZZTIME=60s test/fuzz

# The kernel's own WireGuard, in an emulated machine whose kernel has it: some minutes.
guest:
	test/guest

bench: build
	bench/run

# What is made from the structs and comments of api: the OpenAPI document.
gen:
	$(GO) generate ./api/gen

# A scratch image with the binary and an empty data directory.
image: build
	mkdir -p bin/data
	docker build -t cardea -f deploy/Dockerfile bin

clean:
	rm -rf bin
