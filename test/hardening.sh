#!/bin/sh
# hardening.sh PROGRAM: whether it was built as a release is to be. What goes
# wrong in it shall be hard to make use of.
set -eu
f=$1
bad=0
readelf=${READELF:-readelf}
all=$($readelf -hldW --syms "$f")

has() {
	printf '%s\n' "$all" | grep -Eq "$2" && return
	echo "$f: $1" >&2
	bad=1
}

has "it is not position independent (-pie)" '^ *Type: +DYN'
has "its tables stay writable (-z relro)" '^ *GNU_RELRO'
has "names are not bound at start (-z now)" 'FLAGS.*NOW'
has "the stack can be executed (-z noexecstack)" '^ *GNU_STACK.* RW '
has "no stack protector (-fstack-protector-strong)" '__stack_chk_fail'
# Where the C library has no such functions, as musl, there is nothing to see.
if printf '%s\n' "$all" | grep -q GLIBC_; then
	has "no checked functions (-D_FORTIFY_SOURCE)" '_chk@'
fi
# Memory that can be written and executed is for nobody.
if printf '%s\n' "$all" | grep -Eq '^ *LOAD.* RWE '; then
	echo "$f: a part can be written and executed" >&2
	bad=1
fi
exit $bad
