#!/bin/sh
# need.sh PURPOSE PACKAGE...: installs the Debian packages that are missing,
# saying so; where there is no apt-get it says what to install.
set -eu
purpose=$1
shift
missing=
for p in "$@"; do
	# ready means: installed, or the command of that name is there anyway
	case $(dpkg-query -W -f '${Status}' "$p" 2>/dev/null) in
	*" installed") ;;
	*) command -v "$p" >/dev/null 2>&1 || missing="$missing $p" ;;
	esac
done
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1; then
	echo "$purpose needs what Debian calls$missing; install it and go on" >&2
	exit 0
fi
sudo=
if [ "$(id -u)" -ne 0 ]; then
	sudo=sudo
	echo "$purpose needs packages; sudo may ask for your password" >&2
fi
echo "$purpose needs:$missing; installing with apt-get" >&2
export DEBIAN_FRONTEND=noninteractive
# The package lists may be old, or not there at all on a fresh system.
install="$sudo apt-get install -y -qq --no-install-recommends$missing"
$install >/dev/null 2>&1 || { $sudo apt-get update -qq && $install >/dev/null; }
