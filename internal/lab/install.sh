#!/bin/sh
# install.sh brings a Debian 12 or 13 machine to what the laboratory needs.
# It is idempotent: where everything is there it changes nothing and needs
# neither root nor a network. `install.sh -n` only names what is missing, and
# exits 1 if that is anything.
#
# On Debian 12 QEMU and libvirt come from backports: the emulator of QEMU 7.2
# corrupts the memory of a guest that is migrated live under TCG (fixed in
# 9.0). The mirror is the one the machine uses already; the suite is verified
# with Debian's own keyring.
set -eu

virt="qemu-system-x86 qemu-system-common qemu-block-extra qemu-utils seabios
      libvirt-daemon-system libvirt-clients libvirt-dev"
plain="busybox-static ca-certificates fio gcc iproute2 iptables kmod libc6-dev
       libnbd-bin nbdkit pkg-config xz-utils zstd"

# Unpacked into the cache, never installed: a kernel for the guests must not
# become this machine's boot kernel, nor an agent its service.
cache=${VMFERRY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vmferry}
unpacked="linux-image-cloud-amd64 qemu-guest-agent"

. /etc/os-release
case "${VERSION_CODENAME:-}" in
bookworm) suite=bookworm-backports least=1:9 ;;
trixie)   suite='' least=1:9 ;;
*) echo "install.sh: ${PRETTY_NAME:-this system} is not Debian 12 or 13; install by hand: $virt $plain" >&2
   exit 1 ;;
esac

installed() { # name [least version]
	v=$(dpkg-query -W -f '${db:Status-Abbrev}${Version}' "$1" 2>/dev/null) || return 1
	case "$v" in ii\ *) ;; *) return 1 ;; esac
	[ -z "${2:-}" ] || dpkg --compare-versions "${v#ii }" ge "$2"
}

missing_virt='' missing_plain='' missing_unpacked=''
installed qemu-system-x86 "$least" || missing_virt=$virt
for p in $virt; do installed "$p" || missing_virt=$virt; done
for p in $plain; do installed "$p" || missing_plain="$missing_plain $p"; done
for p in $unpacked; do [ -e "$cache/packages/$p/.done" ] || missing_unpacked="$missing_unpacked $p"; done

if [ -z "$missing_virt$missing_plain$missing_unpacked" ]; then
	exit 0
fi
if [ "${1:-}" = -n ]; then
	echo $missing_virt $missing_plain $missing_unpacked
	exit 1
fi

as_root=''
if [ "$(id -u)" != 0 ]; then
	as_root=sudo
	command -v sudo >/dev/null || { echo "install.sh: run this as root once, or install sudo" >&2; exit 1; }
fi
apt() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o APT::Install-Recommends=false "$@"; }

if [ -n "$suite" ]; then
	list=/etc/apt/sources.list.d/vmferry-backports.sources
	# The first run has no indexes yet: without them the mirror is unknown.
	site=$(apt-get indextargets --format '$(SITE)' "Release: $VERSION_CODENAME" 'Created-By: Packages' | head -n 1)
	[ -n "$site" ] || { echo "install.sh: no mirror of $VERSION_CODENAME is configured" >&2; exit 1; }
	if ! apt-get indextargets --format '$(RELEASE)' 'Created-By: Packages' | grep -qx "$suite"; then
		printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' \
			"$site" "$suite" /usr/share/keyrings/debian-archive-keyring.gpg | $as_root tee "$list" >/dev/null
	fi
fi
echo "install.sh: installing $(echo $missing_virt $missing_plain $missing_unpacked)"
apt update
# shellcheck disable=SC2086
[ -z "$missing_plain" ] || apt install -y $missing_plain
# shellcheck disable=SC2086
[ -z "$missing_virt" ] || apt install -y ${suite:+-t "$suite"} $virt

# unpack fetches one package and lays its files out below the cache. A
# metapackage stands for the newest package that it depends on.
unpack() {
	name=$1 dir=$cache/packages/$1
	case "$name" in linux-image-cloud-*)
		name=$(apt-cache depends --no-recommends "$name" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
		[ -n "$name" ] || { echo "install.sh: $1 names no kernel" >&2; exit 1; } ;;
	esac
	tmp=$(mktemp -d "$cache/packages/.new-XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	(cd "$tmp" && apt-get -qq download "$name" && dpkg-deb -x ./*.deb root && rm ./*.deb)
	echo "$name" >"$tmp/.done"
	rm -rf "$dir"
	mv "$tmp" "$dir"
}
mkdir -p "$cache/packages"
for p in $missing_unpacked; do unpack "$p"; done
