# One recipe for all targets: make -f cross/cross.mk TARGET=armv6, which `make
# cross` calls for each. TARGET.mk says what differs.
#
# musl and BearSSL are compiled from source by the same compiler, so no library
# of the target is needed, and the result is one static file without names of
# places, people or times in it: the same sources and the same compiler give the
# same bytes. TARGET.mk gives: T, the prefix of the tools; CPU, what to compile
# for; PIE and PIE_LINK, if its addresses are to differ with each start; SMALL,
# what makes code smaller and somewhat slower; SIZE_MAX, how large it may get.

include cross/$(TARGET).mk

O = build/$(TARGET)
BEARSSL = build/src/bearssl
MUSL = build/src/musl

CC = $(T)-gcc
SYS = $(O)/sys
COMMON = -std=c11 $(CPU) $(PIE) -ffunction-sections -fdata-sections \
	-fno-asynchronous-unwind-tables -fno-unwind-tables \
	-nostdinc -isystem $(SYS)/include \
	-isystem $(shell $(CC) -print-file-name=include)
WARN = -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes \
	-Wmissing-prototypes -Wwrite-strings -Wvla
OPT = -Os
MIDGE_CFLAGS = $(OPT) -g $(COMMON) -D_GNU_SOURCE $(WARN) \
	-fstack-protector-strong -isystem $(BEARSSL)/inc \
	-ffile-prefix-map=$(CURDIR)=. -ffile-prefix-map=$(BEARSSL)=bearssl
BEARSSL_CFLAGS = -Os $(COMMON) -I$(BEARSSL)/inc -I$(BEARSSL)/src
# No relro, as nothing would apply it in a static program, and the page that it
# pads is 64 KiB.
LDFLAGS = -static -nostdlib -nostartfiles $(LINK) $(PIE_LINK) \
	-Wl,-z,norelro,-z,noexecstack,--gc-sections,--build-id=none

# SMALL is for all but the inner loops of cryptography, and what is smaller
# without: sandbox has atomic operations, for which Thumb calls libgcc. A call
# from one to the other takes a detour on an ARM1176, see ld's --fix-arm1176.
FAST = $(O)/hash.o $(O)/sandbox.o
BEARSSL_FAST = $(addprefix $(O)/bearssl/,hash/ghash_ctmul.o hash/sha2% \
	int/i31_add.o int/i31_mont% int/i31_muladd.o int/i31_sub.o \
	ec/ec_c25519% ec/ec_p256% symcipher/aes_ct% symcipher/chacha20_ct.o \
	symcipher/poly1305_ctmul.o)
MUSL_FAST = $(patsubst %,obj/src/string/%.o,memchr memcmp memmove memset)

SRC := $(sort $(wildcard *.c))
OBJ = $(SRC:%.c=$(O)/%.o) $(O)/cross/single.o
BEARSSL_SRC := $(sort $(wildcard $(BEARSSL)/src/*.c $(BEARSSL)/src/*/*.c))
BEARSSL_OBJ = $(BEARSSL_SRC:$(BEARSSL)/src/%.c=$(O)/bearssl/%.o)

# For __DATE__, which would else tell two builds apart.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || \
	stat -c %Y Makefile)
export LC_ALL = C

all: tools
	@$(MAKE) -s -f cross/cross.mk $(O)/midge
	@echo "$(O)/midge: $$(stat -c %s $(O)/midge) bytes"

# Stripped for the Pi; midge.full has the symbols, for gdb and `make size`.
$(O)/midge: $(O)/midge.full
	@$(T)-strip -s -R .comment -o $@.new $<
	@cross/check $(TARGET) $(T) $< $@.new $(SIZE_MAX)
	@mv $@.new $@

$(O)/midge.full: $(OBJ) $(O)/libbearssl.a $(SYS)/lib/libc.a
	@echo "$(CC) $@"; $(CC) $(LDFLAGS) -L$(SYS)/lib -o $@ $(SYS)/lib/$(if $(PIE_LINK),rcrt1,crt1).o $(SYS)/lib/crti.o \
		$(OBJ) $(O)/libbearssl.a \
		-Wl,--start-group -lc -lgcc -Wl,--end-group $(SYS)/lib/crtn.o

$(O)/%.o: %.c cross/cross.mk cross/$(TARGET).mk $(SYS)/lib/libc.a
	@mkdir -p $(@D)
	@echo "$(CC) $<"; $(CC) $(MIDGE_CFLAGS) \
		$(if $(filter $(FAST),$@),,$(SMALL)) -MMD -c -o $@ $<

$(O)/libbearssl.a: $(BEARSSL_OBJ)
	@rm -f $@
	@echo "$(T)-ar $@"; $(T)-ar rcsD $@ $^

$(O)/bearssl/%.o: $(BEARSSL)/src/%.c cross/cross.mk cross/$(TARGET).mk \
		$(SYS)/lib/libc.a
	@mkdir -p $(@D)
	@$(CC) $(BEARSSL_CFLAGS) $(if $(filter $(BEARSSL_FAST),$@),,$(SMALL)) -c -o $@ $<

# musl's makefile takes its tools from CROSS_COMPILE; its specs file and its
# wrapper are not needed, as the link line above names every file. Nothing here
# prints floating point, so printf() does without that.
$(SYS)/lib/libc.a: cross/cross.mk cross/$(TARGET).mk
	@rm -rf $(O)/musl $(SYS) && mkdir -p $(O)/musl
	@echo "musl for $(TARGET)"
	@cd $(O)/musl && CROSS_COMPILE=$(T)- CC=$(T)-gcc CFLAGS="$(CPU) $(PIE)" \
		$(abspath $(MUSL))/configure --target=$(T:gnu%=musl%) \
		--prefix=$(abspath $(SYS)) --disable-shared \
		--enable-optimize=size --enable-wrapper=no >configure.log
	@echo 'CFLAGS_ALL += $(SMALL)' >>$(O)/musl/config.mak
	@echo '$(MUSL_FAST): CFLAGS_ALL += $(CPU)' >>$(O)/musl/config.mak
	@sed 's/l = fmt_fp(.*/goto inval;/' $(MUSL)/src/stdio/vfprintf.c \
		>$(O)/musl/vfprintf.c
	@printf 'obj/src/stdio/vfprintf.o: vfprintf.c\n\t$$(CC_CMD)\n' \
		>>$(O)/musl/config.mak
	@$(MAKE) -s -C $(O)/musl install-libs install-headers \
		>$(O)/musl/make.log 2>&1 || { tail $(O)/musl/make.log; exit 1; }
	@touch $@

-include $(OBJ:.o=.d)

# Sections and the largest symbols.
size: $(O)/midge
	@printf '%s: %d bytes\n' $< $$(stat -c %s $<)
	@$(T)-size -A -d $< | awk '$$2 > 0 && $$3 > 0 || /^section/'
	@$(T)-nm -S --size-sort -t d $(O)/midge.full | tail -25 | \
		awk '{ printf "%8d  %s %s\n", $$2, $$3, $$4 }'

# The tests of the broker's behaviour with this binary, emulated if need be.
test: $(O)/midge
	MIDGE="$(RUN) $(O)/midge" $(PYTEST) $(BEHAVIOUR)

deb: $(O)/midge
	@for a in $(DEB); do BEARSSL=$(BEARSSL) MUSL=$(MUSL) \
		cross/deb $$a $(O)/midge || exit 1; done

# What this target needs of Debian; ones own compiler of that name will do.
tools:
	@command -v $(CC) >/dev/null || test/need.sh "the build for $(TARGET)" \
		$$([ "$$(dpkg --print-architecture 2>/dev/null)" = amd64 ] && \
		[ $(TARGET) = x86_64 ] && echo gcc || \
		echo gcc-$(subst _,-,$(T)))

.PHONY: all size test deb tools
