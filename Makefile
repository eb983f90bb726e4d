# midge: see README.md. Everything is built in build/.

CC ?= cc
B := build
WARN := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes \
	-Wmissing-prototypes -Wwrite-strings -Wvla
HARD := -fstack-protector-strong -D_FORTIFY_SOURCE=2 -fPIE
CFLAGS ?= -O2 -g
ALL_CFLAGS = -std=c11 -D_GNU_SOURCE $(WARN) $(HARD) $(CFLAGS) $(MORE_CFLAGS)
ALL_LDFLAGS = -pie -Wl,-z,relro,-z,now,-z,noexecstack $(LDFLAGS) $(MORE_CFLAGS)
SRC := $(sort $(wildcard *.c))
OBJ := $(SRC:%.c=$(B)/%.o)

.PHONY: all run test bench asan fuzz install check clean tools-build tools-test tools-bench

all: $(B)/midge

$(B)/midge: $(OBJ)
	$(CC) $(ALL_LDFLAGS) -o $@ $(OBJ) -lm

$(B)/%.o: %.c Makefile | tools-build
	@mkdir -p $(B)
	$(CC) $(ALL_CFLAGS) -MMD -c -o $@ $<

-include $(OBJ:.o=.d)
