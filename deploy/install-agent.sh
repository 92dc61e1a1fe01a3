#!/bin/sh
# Installs the agent on 64-bit Raspberry Pi OS or Debian (12 or later): user, groups, program, settings, systemd unit. Run
# it again to upgrade: keys, spool and settings stay as they are, and the version before stays for --rollback.
#   deploy/install-agent.sh [--dry-run] [--uninstall] [--rollback] [--root DIR] [--from WHEEL-OR-FOLDER] [--extras pi,tpm]
#   --dry-run    say what would be done
#   --uninstall  take away program and unit; keys, spool and settings stay
#   --rollback   go back to the version before the last upgrade
#   --root DIR   install into a root folder (an image that is being made); no service is started there
#   --from PATH  what to install: a wheel, or this repository's folder (the default)
# The program lies in /opt/maxgreen-releases/N; /opt/maxgreen is a link to the one in use.
set -eu
dry= root= uninstall= rollback= extras=pi
from=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; }
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=1 ;;
    --uninstall) uninstall=1 ;;
    --rollback) rollback=1 ;;
    --root) root=$2; shift ;;
    --from) from=$2; shift ;;
    --extras) extras=$2; shift ;;
    -h|--help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
fail() { echo "install-agent.sh: $*" >&2; exit 1; }
[ -n "$dry" ] || [ "$(id -u)" = 0 ] || fail "run it as root: sudo $0"
say() { echo "$*"; }
do_it() { say "  $*"; [ -n "$dry" ] || "$@"; }
inside() { if [ -n "$root" ]; then do_it chroot "$root" "$@"; else do_it "$@"; fi; }
look() { if [ -n "$root" ]; then chroot "$root" "$@"; else "$@"; fi; } # changes nothing, so also in a dry run
live() { [ -z "$root" ] && [ -d /run/systemd/system ]; }
unit=$root/etc/systemd/system/maxgreen-agent.service
rules=$root/etc/udev/rules.d/70-maxgreen-agent.rules
watchdog=$root/etc/systemd/system.conf.d/maxgreen-watchdog.conf
releases=/opt/maxgreen-releases
restart() {
  live || return 0
  do_it systemctl daemon-reload
  if systemctl is-active --quiet maxgreen-agent.service; then do_it systemctl restart maxgreen-agent.service; fi
}
in_use() { readlink "$root/opt/maxgreen" 2>/dev/null | sed 's#.*/##' || true; }
numbers() { ls "$root$releases" 2>/dev/null | grep -x '[0-9]\{4\}' | sort || true; }

if [ -n "$uninstall" ]; then
  say "taking the agent away"
  if live; then do_it systemctl disable --now maxgreen-agent.service || true; fi
  do_it rm -f "$unit" "$rules" "$watchdog" "$root/usr/local/bin/maxgreen"
  do_it rm -rf "$root/opt/maxgreen" "$root$releases"
  if live; then do_it systemctl daemon-reload; fi
  say "kept: /var/lib/maxgreen-agent (keys and spool) and /etc/maxgreen (settings)"
  exit 0
fi

if [ -n "$rollback" ]; then
  now=$(in_use)
  before=$(numbers | awk -v now="$now" '$0 < now' | tail -n 1)
  [ -n "$before" ] || fail "there is no version before the one in use (${now:-none}) in $releases"
  say "going back from $now to $before"
  do_it ln -sfn "$releases/$before" "$root/opt/maxgreen"
  restart
  exit 0
fi

say "this machine"
machine=$(look dpkg --print-architecture 2>/dev/null) || fail "no dpkg: it is for Debian 12 or later, and Raspberry Pi OS"
case $machine in
  amd64|arm64) ;;
  *) fail "$machine is not supported: packages that the agent needs exist for 64 bits alone. Take the 64-bit image of
Raspberry Pi OS (a Zero 2 W, a 3, 4 or 5 runs it)" ;;
esac
say "  $machine"

say "packages"
missing=
has() { look dpkg -s "$1" >/dev/null 2>&1; }
for package in python3 python3-venv python3-dev gcc libc6-dev i2c-tools; do
  has "$package" || missing="$missing $package"
done
case ",$extras," in *,pi,*) # Python 3.13 and later: lgpio has no wheel, and is built with swig
  has python3 && look python3 -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || has swig || missing="$missing swig" ;;
esac
if [ -n "$missing" ]; then
  inside apt-get update -qq
  inside env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $missing
fi
[ -n "$dry" ] || look python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "Python 3.11 or later is needed: Debian 12, Raspberry Pi OS Bookworm, or later"

say "user and groups"
for group in i2c gpio; do
  grep -q "^$group:" "$root/etc/group" 2>/dev/null || inside groupadd --system "$group"
done
grep -q '^maxgreen-agent:' "$root/etc/passwd" 2>/dev/null ||
  inside useradd --system --home-dir /var/lib/maxgreen-agent --shell /usr/sbin/nologin maxgreen-agent
inside usermod --append --groups i2c,gpio maxgreen-agent
if grep -q '^tss:' "$root/etc/group" 2>/dev/null; then inside usermod --append --groups tss maxgreen-agent; fi

last=$(numbers | tail -n 1 | sed 's/^0*//')
release=$releases/$(printf %04d $((${last:-0} + 1)))
say "program in $release"
[ -n "$dry" ] || trap '[ "$(in_use)" = "$(basename "$release")" ] || rm -rf "$root$release"' EXIT
do_it mkdir -p "$root$releases"
inside python3 -m venv "$release"
source=$from constraints=$here/../constraints.txt
if [ -n "$root" ]; then # the folder may lie outside of the root
  source=$release/source/$(basename "$from") constraints=$release/source/constraints.txt
  do_it mkdir -p "$root$release/source"
  do_it cp -r "$from" "$root$release/source/"
  do_it cp "$here/../constraints.txt" "$root$constraints"
fi
# PYPI=1: lgpio's own switch for building with its C library inside
inside env PYPI=1 "$release/bin/pip" install --quiet --disable-pip-version-check --constraint "$constraints" "$source[$extras]"
[ -z "$root" ] || do_it rm -rf "$root$release/source"
do_it mkdir -p "$root$release/share"
do_it cp "$here/../docs/agent.md" "$root$release/share/agent.md"
inside "$release/bin/maxgreen" --version

say "settings in /etc/maxgreen, state in /var/lib/maxgreen-agent"
do_it mkdir -p "$root/etc/maxgreen"
settings=$root/etc/maxgreen/agent.toml
if [ ! -e "$settings" ]; then
  say "  maxgreen agent config sample > $settings"
  [ -n "$dry" ] || look "$release/bin/maxgreen" agent config sample >"$settings"
elif [ -z "$dry" ] && [ -n "$(in_use)" ]; then
  # an upgrade must not leave a device without an agent because it reads the settings otherwise
  old=0 new=0
  look /opt/maxgreen/bin/maxgreen agent config check >/dev/null 2>&1 || old=$?
  look "$release/bin/maxgreen" agent config check || new=$?
  [ "$new" = 0 ] || [ "$old" != 0 ] || fail "the new version refuses $settings (see above); the old one stays in use"
fi
inside install -d -m 0700 -o maxgreen-agent -g maxgreen-agent /var/lib/maxgreen-agent

say "devices, watchdog and unit"
do_it mkdir -p "$root/etc/udev/rules.d" "$root/etc/systemd/system" "$root/etc/systemd/system.conf.d"
say "  $rules"
[ -n "$dry" ] || cat >"$rules" <<'RULES'
SUBSYSTEM=="i2c-dev", GROUP="i2c", MODE="0660"
SUBSYSTEM=="gpio", KERNEL=="gpiochip*", GROUP="gpio", MODE="0660"
RULES
say "  $watchdog"
[ -n "$dry" ] || cat >"$watchdog" <<'WATCHDOG'
# A kernel that hangs is reset by the Pi's own watchdog (15 s is its longest), and the relay's pin falls open.
[Manager]
RuntimeWatchdogSec=15s
WATCHDOG
do_it cp "$here/systemd/maxgreen-agent.service" "$unit"
if [ -e "$root/opt/maxgreen" ] && [ ! -L "$root/opt/maxgreen" ]; then do_it rm -rf "$root/opt/maxgreen"; fi
do_it ln -sfn "$release" "$root/opt/maxgreen"
do_it ln -sf /opt/maxgreen/bin/maxgreen "$root/usr/local/bin/maxgreen"
for number in $(numbers | head -n -2); do
  [ "$number" = "$(in_use)" ] || do_it rm -rf "$root$releases/$number"
done
if live; then
  do_it udevadm control --reload
  do_it systemctl daemon-reexec
  do_it systemctl enable maxgreen-agent.service
  restart
fi
cat <<'NEXT'
next:
  sudo -u maxgreen-agent maxgreen agent init
  fill in /etc/maxgreen/agent.toml; sudo -u maxgreen-agent maxgreen agent config check
  sudo systemctl start maxgreen-agent
NEXT
