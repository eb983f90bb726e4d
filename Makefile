# midge: see README.md. Everything is built in build/; missing Debian packages
# are installed by test/need.sh, which says so.

CC = cc
B = build
CFLAGS = -O2 -g
WARN = -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes \
	-Wmissing-prototypes -Wwrite-strings -Wvla
HARD = -fstack-protector-strong -D_FORTIFY_SOURCE=2 -fPIE
ALL_CFLAGS = -std=c11 -D_GNU_SOURCE $(WARN) $(HARD) $(CFLAGS)
ALL_LDFLAGS = -pie -Wl,-z,relro,-z,now,-z,noexecstack $(LDFLAGS)
LIBS = -l:libbearssl.a
prefix = /usr/local
man = $(prefix)/share/man
etc = /etc/midge

SRC := $(sort $(wildcard *.c))
OBJ = $(SRC:%.c=$(B)/%.o)
MODULES = $(filter-out $(B)/broker.o,$(OBJ))
UNITS := $(patsubst test/%.c,%,$(sort $(wildcard test/test_*.c)))
FUZZERS := $(patsubst test/%.c,%,$(sort $(wildcard test/fuzz_*.c)))
PYTEST = /usr/bin/python3 -m pytest -q -n 4 -p no:cacheprovider
SANITIZE = -fsanitize=address,undefined -fno-sanitize-recover=undefined
T = 20

all: $(B)/midge

$(B)/midge: $(OBJ)
	$(CC) $(CFLAGS) $(ALL_LDFLAGS) -o $@ $(OBJ) $(LIBS)

$(B)/%.o: %.c Makefile | compiler
	@mkdir -p $(B)
	$(CC) $(ALL_CFLAGS) -MMD -c -o $@ $<

# persist is tried with a journal in memory (test/journal.h) in place of store.
AWAY_persist = store

$(B)/test_%: test/test_%.c test/check.h test/model.h test/pem.h \
		test/numbers.h test/journal.h $(MODULES)
	$(CC) $(ALL_CFLAGS) -I. -Itest $(ALL_LDFLAGS) -o $@ $< \
		$(filter-out $(AWAY_$*:%=$(B)/%.o),$(MODULES)) $(LIBS)

# store with the calls that touch the disk in the hands of the tests, and the
# allocations of what reads it.
DISK = pwrite pwritev fdatasync fsync ftruncate fallocate rename unlink open \
	fork pread realloc

$(B)/storetool: test/storetool.c test/faults.c test/faults.h test/numbers.h \
		$(MODULES)
	$(CC) $(ALL_CFLAGS) -I. -Itest $(ALL_LDFLAGS) $(DISK:%=-Wl,--wrap=%) \
		-o $@ test/storetool.c test/faults.c $(MODULES) $(LIBS)

# The broker with its allocations in the hands of the tests.
ALLOC = malloc calloc realloc strdup opendir fdopen getline scandir

$(B)/midge-alloc: test/alloc.c $(OBJ)
	$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) $(ALLOC:%=-Wl,--wrap=%) -o $@ \
		test/alloc.c $(OBJ) $(LIBS)

$(B)/load: test/load.c | compiler
	@mkdir -p $(B)
	$(CC) -std=c11 -D_GNU_SOURCE -O2 $(WARN) -Wno-conversion -o $@ $<

-include $(OBJ:.o=.d)

compiler:
	@command -v $(CC) >/dev/null && [ -e /usr/include/stdio.h ] && \
		[ -e /usr/include/bearssl.h ] || \
		test/need.sh "the build" gcc libc6-dev libbearssl-dev

# A broker for this machine at port 1883 that shows all exchanges.
run: $(B)/midge
	@echo 'Try, in two more terminals (package mosquitto-clients):'
	@echo "  mosquitto_sub -t 'hello/#' -v"
	@echo "  mosquitto_pub -t hello/world -m 'it works'"
	@echo 'Ctrl-C stops the broker.'
	@$(B)/midge -v

# All tests: C units, the broker over sockets, real clients, the layers.
test: tools-test $(B)/midge $(B)/midge-alloc $(B)/storetool \
		$(UNITS:%=$(B)/%) check
	MIDGE="$(B)/midge" BUILD="$(B)" $(PYTEST) test
	/usr/bin/python3 test/coverage_ids.py
	@if command -v clang >/dev/null; then $(MAKE) fuzz-brief; \
	else echo "No clang: the fuzzers were not run."; fi
	$(if $(HARD),@$(MAKE) -s test-arm-brief)

# Nobody gets an ssh server from trying the tests: those that need one, or the
# other tools in the last line, are skipped where they are not there.
tools-test:
	@test/need.sh "the test" python3 python3-pytest python3-pytest-xdist \
		python3-paho-mqtt mosquitto-clients nodejs npm openssl \
		curl gnutls-bin \
		$(if $(CI),shellcheck busybox openssh-server openssh-client)
	@[ -d build/node_modules/mqtt ] || npm install --silent --no-audit \
		--no-fund --prefix build mqtt@5

# The same under AddressSanitizer and UBSan.
asan:
	$(MAKE) test B=build/asan CFLAGS="-O1 -g $(SANITIZE)" HARD=

# Each allocation fails, one after the other; the suite tries some of them.
faults: tools-test
	$(MAKE) B=build/asan CFLAGS="-O1 -g $(SANITIZE)" HARD= \
		build/asan/midge-alloc
	ALLOC_ALL=1 BUILD=build/asan $(PYTEST) test/test_alloc.py

# Speed and memory beside Mosquitto's, if that is installed.
bench: $(B)/midge $(B)/load
	@test/need.sh "the bench" python3
	/usr/bin/python3 test/bench.py $(BENCH)

# Kills the broker N times under load; nothing acknowledged may be lost.
N = 1000
crash: $(B)/midge
	MIDGE="$(B)/midge" BUILD="$(B)" /usr/bin/python3 test/crash.py \
		--kills $(N) $(if $(SEED),--seed $(SEED))

# Mixed load for T seconds: does memory, or anything else, grow?
soak: $(B)/midge
	@test/need.sh "the soak test" python3 python3-pytest openssl
	MIDGE="$(B)/midge" /usr/bin/python3 test/soak.py $(T)

# The end of a fuzzer's command: its seeds in test/corpus if it has some, and what
# it says, which is shown if it finds something.
SEEDS = $$(ls -d test/corpus/$$f 2>/dev/null) -artifact_prefix=build/fuzz/ \
	>build/fuzz/$$f.log 2>&1 || { tail -40 build/fuzz/$$f.log; exit 1; }

# Each fuzzer for T seconds, from its seeds and what it found before.
fuzz: $(FUZZERS:%=build/fuzz/%)
	@for f in $(FUZZERS); do mkdir -p build/fuzz/$$f.corpus; \
		echo "$$f for $(T) s"; build/fuzz/$$f -max_total_time=$(T) \
		-timeout=10 build/fuzz/$$f.corpus $(SEEDS); \
		tail -1 build/fuzz/$$f.log; done

# The same for a moment, from the seeds alone.
fuzz-brief: $(FUZZERS:%=build/fuzz/%)
	@for f in $(FUZZERS); do rm -rf build/fuzz/brief; \
		mkdir build/fuzz/brief; build/fuzz/$$f -max_total_time=2 \
		-timeout=20 build/fuzz/brief $(SEEDS); done
	@echo "No fuzzer has found anything."

FUZZ = -std=c11 -D_GNU_SOURCE -O1 -g -I. -Itest $(SANITIZE)
FUZZ_OBJ = $(SRC:%.c=build/fuzz/%.o)

build/fuzz/%.o: %.c $(wildcard *.h) | tools-fuzz
	@mkdir -p build/fuzz
	clang $(FUZZ) -fsanitize=fuzzer-no-link -c -o $@ $<

build/fuzz/fuzz_%: test/fuzz_%.c test/fuzz.h test/model.h test/pem.h \
		test/journal.h $(FUZZ_OBJ)
	clang $(FUZZ) -fsanitize=fuzzer -o $@ $< $(filter-out \
		build/fuzz/broker.o $(AWAY_$*:%=build/fuzz/%.o),$(FUZZ_OBJ)) $(LIBS)

# Branches of the protocol code that the tests and the seeds of the fuzzers go
# through. The broker may have another user than the tests: all share one file,
# and count in it at once (%c), as many a broker of the tests is killed.
COV = build/cov
COVER = -fprofile-instr-generate -fcoverage-mapping -fprofile-update=atomic \
	-mllvm -runtime-counter-relocation
SEEDED = fuzz_broker fuzz_mqtt fuzz_topic
PROFILE = LLVM_PROFILE_FILE=$(CURDIR)/$(COV)/raw/%c%m

coverage: tools-test tools-fuzz $(B)/storetool
	@test/need.sh "the coverage" clang llvm
	$(MAKE) B=$(COV) CC=clang CFLAGS="-O1 -g $(COVER)" HARD= $(COV)/midge \
		$(COV)/midge-alloc $(UNITS:%=$(COV)/%)
	cp $(B)/storetool $(COV)/   # its calls are those that matter, without ours
	rm -rf $(COV)/raw && mkdir -m 777 $(COV)/raw
	for p in midge midge-alloc; do \
		$(PROFILE) $(COV)/$$p --version >$(COV)/log; done
	chmod a+rw $(COV)/raw/*
	$(PROFILE) MIDGE=$(COV)/midge BUILD=$(COV) $(PYTEST) test
	for f in $(SEEDED); do [ -d test/corpus/$$f ] || continue; \
		clang -std=c11 -D_GNU_SOURCE -O1 -I. -Itest -fsanitize=fuzzer \
		$(COVER) -o $(COV)/$$f test/$$f.c $(filter-out broker.c,$(SRC)) \
		$(LIBS) && $(PROFILE) $(COV)/$$f -runs=0 test/corpus/$$f \
		2>$(COV)/log || exit 1; done
	llvm-profdata merge -o $(COV)/all $(COV)/raw/*
	llvm-cov export -instr-profile $(COV)/all $(COV)/midge | \
		/usr/bin/python3 test/coverage.py $(COV)/missing 95

tools-fuzz:
	@command -v clang >/dev/null || test/need.sh "the fuzzer" clang
	@test/need.sh "the fuzzer" libclang-rt-dev

# Static checks; test/lint.ignore has what they find without reason.
lint:
	@test/need.sh "lint" gcc clang clang-tidy clang-tools cppcheck python3
	/usr/bin/python3 test/lint.py $(SRC)

include cross/targets.mk

# A module includes only modules below it, see test/layers.sh; the program was
# built as a release is to be (a sanitizer takes the place of HARD).
check: $(B)/midge
	@test/layers.sh
	$(if $(HARD),@test/hardening.sh $(B)/midge)

# For this machine: program, manual, configuration if there is none, the unit.
install: $(B)/midge
	install -D -m 755 -s $(B)/midge $(DESTDIR)$(prefix)/sbin/midge
	cross/manpages $(B)/man
	install -D -m 644 $(B)/man/midge.8 $(DESTDIR)$(man)/man8/midge.8
	install -D -m 644 $(B)/man/midge.conf.5 $(DESTDIR)$(man)/man5/midge.conf.5
	[ -e $(DESTDIR)$(etc)/midge.conf ] || \
		install -D -m 644 cross/midge.conf $(DESTDIR)$(etc)/midge.conf
	sed 's,/usr/sbin,$(prefix)/sbin,; s,/etc/midge,$(etc),' \
		cross/init/midge.service >$(B)/midge.service
	install -D -m 644 $(B)/midge.service \
		$(DESTDIR)$(prefix)/lib/systemd/system/midge.service
	@echo 'As a service: useradd --system midge && systemctl daemon-reload &&'
	@echo 'systemctl enable --now midge. For other systems see cross/init.'

clean:
	rm -rf build

.PHONY: all compiler run test tools-test asan bench crash soak fuzz fuzz-brief tools-fuzz \
	faults coverage lint check install clean
