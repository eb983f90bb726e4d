# Targets for other machines than this one; cross.mk has the recipe itself.

TARGET = armv6 aarch64 x86_64
BEARSSL = build/src/bearssl
MUSL = build/src/musl
CROSS = $(MAKE) -s -f cross/cross.mk BEARSSL=$(BEARSSL) MUSL=$(MUSL)

# Static binaries: build/armv6/midge for every Pi, build/aarch64/midge,
# build/x86_64/midge. TARGET= names those that you want.
cross: $(TARGET:%=cross-%)
cross-%: cross-sources
	@$(CROSS) TARGET=$*

cross-sources:
	@[ -e $(BEARSSL) ] && [ -e $(MUSL) ] || cross/sources build/src

size: cross
	@for t in $(TARGET); do $(CROSS) TARGET=$$t size || exit 1; done

# The binaries themselves: reproducible, static, running where they should.
test-cross: tools-test cross tools-qemu
	CROSS="$(TARGET)" $(PYTEST) test/test_cross.py

tools-qemu:
	@command -v qemu-arm >/dev/null && command -v qemu-aarch64 >/dev/null || \
		test/need.sh "the emulation" qemu-user

.PHONY: cross cross-sources size test-cross tools-qemu
