#!/bin/sh
# The modules, bottom to top: each may include the headers of those before it,
# and its own, never one above.
set -eu
order="mem hash timer log file config mqtt msg cert tls conn watch topic
syscalls sandbox store mosqdb session pwhash passwd acl auth listen service check
state strangers persist relief send route client sys broker"
bad=0
seen=
for m in $order; do
	seen="$seen $m"
	for f in $m.c $m.h; do
		[ -e "$f" ] || continue
		for h in $(sed -n 's/^#include "\(.*\)\.h"$/\1/p' "$f"); do
			case " $seen " in
			*" $h "*) ;;
			*) echo "$f may not include $h.h" >&2; bad=1 ;;
			esac
		done
	done
done
for f in *.c; do
	case " $(echo $order) " in
	*" ${f%.c} "*) ;;
	*) echo "$f has no place in $0" >&2; bad=1 ;;
	esac
done
exit $bad
