# Targets for other machines than this one; cross.mk has the recipe itself.

TARGET = armv6 aarch64 x86_64
BEARSSL = build/src/bearssl
MUSL = build/src/musl
CROSS = $(MAKE) -s -f cross/cross.mk BEARSSL=$(BEARSSL) MUSL=$(MUSL)

# Static binaries: build/armv6/midge for every Pi, build/aarch64/midge,
# build/x86_64/midge. TARGET= names those that you want.
cross: $(TARGET:%=cross-%)
cross-%: cross-sources
	+@$(CROSS) TARGET=$*

cross-sources:
	@[ -e $(BEARSSL) ] && [ -e $(MUSL) ] || cross/sources build/src

size: cross
	@for t in $(TARGET); do $(CROSS) TARGET=$$t size || exit 1; done

# The binaries themselves: reproducible, static, running where they should.
test-cross: tools-test cross tools-qemu
	CROSS="$(TARGET)" $(PYTEST) test/test_cross.py

# All tests of behaviour, on emulated processors: an ARM1176 and a Cortex-A53.
# Not those of what runs on the PC, and not what the emulator does in its own way:
# the name of the process is its own, and real-time signals do not come through.
BEHAVIOUR = $(filter-out $(patsubst %,test/test_%.py,boot certs cross deb deploy \
	init install mosqdb store_disk unit),$(sort $(wildcard test/test_*.py))) \
	--deselect test/test_check.py::test_beside_the_running_broker \
	--deselect test/test_service.py::test_log_file_is_opened_anew[RTMIN]
test-arm: tools-test cross tools-qemu
	@for t in $(filter armv6 aarch64,$(TARGET)); do $(CROSS) TARGET=$$t \
		PYTEST="$(PYTEST)" BEHAVIOUR="$(BEHAVIOUR)" test || exit 1; done

# Of these, what fits into the suite, where a compiler for ARM and an emulator are
# there: in CI they are fetched.
BRIEF = $(filter test/test_3% test/test_5% test/test_basic% test/test_persist.% \
	test/test_tls.%,$(BEHAVIOUR))
test-arm-brief:
	@$(if $(CI),test/need.sh "the test of the binary for the Pi" \
		gcc-arm-linux-gnueabi qemu-user || echo "They cannot be had.")
	@if command -v arm-linux-gnueabi-gcc >/dev/null && \
		command -v qemu-arm >/dev/null && cross/sources build/src; then \
		$(CROSS) TARGET=armv6 all && $(CROSS) TARGET=armv6 \
			PYTEST="$(PYTEST)" BEHAVIOUR="$(BRIEF)" test; \
	else echo "No compiler or emulator for ARM: the binary for the Pi" \
		"was not tested."; fi

# The binary, an example configuration and the init script that fits onto another
# machine, which then runs it. CERTS=certs takes what cross/make-certs made.
deploy: cross
	@SSH="$(SSH)" cross/deploy "$(PI)" $(CERTS)

# Packages for Debian and Raspberry Pi OS: armel, armhf, arm64 and amd64.
deb: cross
	@command -v dpkg-deb >/dev/null || test/need.sh "the package" dpkg
	@for t in $(TARGET); do $(CROSS) TARGET=$$t deb || exit 1; done

# They are looked at, and installed and removed in a fresh Debian, by root.
test-deb: deb tools-test
	@test/need.sh "the test of packages" lintian debootstrap
	DEB=1 $(PYTEST) -n 0 test/test_deb.py

# Kernels of Debian boot on an emulated Pi Zero and on a 64-bit machine, with
# BusyBox, midge and its init script and nothing else.
boot-test: tools-test cross tools-qemu
	@test/need.sh "the boot test" qemu-system-arm e2fsprogs \
		debian-archive-keyring
	@[ -e build/kernels/arm64 ] || cross/kernels build/kernels
	@rm -f build/boot-report.txt
	BOOT=1 $(PYTEST) -n 0 -rs test/test_boot.py
	@sort build/boot-report.txt

tools-qemu:
	@command -v qemu-arm >/dev/null && command -v qemu-aarch64 >/dev/null || \
		test/need.sh "the emulation" qemu-user

.PHONY: cross cross-sources size test-cross test-arm test-arm-brief deploy deb test-deb boot-test tools-qemu
