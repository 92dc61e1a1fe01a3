#!/bin/sh
# Installs the agent on Raspberry Pi OS or Debian: user, groups, /opt/maxgreen, settings, systemd unit. Run it again to
# upgrade: keys, spool and settings stay as they are.
#   deploy/install-agent.sh [--dry-run] [--uninstall] [--root DIR] [--from WHEEL-OR-FOLDER] [--extras pi,tpm]
#   --dry-run    say what would be done
#   --uninstall  take away program and unit; keys, spool and settings stay
#   --root DIR   install into a root folder (an image that is being made); no service is started there
#   --from PATH  what to install: a wheel, or this repository's folder (the default)
set -eu
dry= root= uninstall= extras=pi
from=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; }
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=1 ;;
    --uninstall) uninstall=1 ;;
    --root) root=$2; shift ;;
    --from) from=$2; shift ;;
    --extras) extras=$2; shift ;;
    -h|--help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
[ -n "$dry" ] || [ "$(id -u)" = 0 ] || { echo "install-agent.sh: run it as root: sudo $0" >&2; exit 1; }
say() { echo "$*"; }
do_it() { say "  $*"; [ -n "$dry" ] || "$@"; }
inside() { if [ -n "$root" ]; then do_it chroot "$root" "$@"; else do_it "$@"; fi; }
live() { [ -z "$root" ] && [ -d /run/systemd/system ]; }
unit=$root/etc/systemd/system/maxgreen-agent.service
rules=$root/etc/udev/rules.d/70-maxgreen-agent.rules

if [ -n "$uninstall" ]; then
  say "taking the agent away"
  if live; then do_it systemctl disable --now maxgreen-agent.service || true; fi
  do_it rm -f "$unit" "$rules"
  do_it rm -rf "$root/opt/maxgreen"
  do_it rm -f "$root/usr/local/bin/maxgreen"
  if live; then do_it systemctl daemon-reload; fi
  say "kept: /var/lib/maxgreen-agent (keys and spool) and /etc/maxgreen (settings)"
  exit 0
fi

say "packages"
missing=
for package in python3 python3-venv python3-dev gcc libc6-dev i2c-tools; do
  if [ -n "$root" ]; then chroot "$root" dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
  else dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"; fi
done
if [ -n "$missing" ]; then
  inside apt-get update -qq
  inside env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $missing
fi

say "user and groups"
for group in i2c gpio; do
  grep -q "^$group:" "$root/etc/group" 2>/dev/null || inside groupadd --system "$group"
done
grep -q '^maxgreen-agent:' "$root/etc/passwd" 2>/dev/null ||
  inside useradd --system --home-dir /var/lib/maxgreen-agent --shell /usr/sbin/nologin maxgreen-agent
inside usermod --append --groups i2c,gpio maxgreen-agent
if grep -q '^tss:' "$root/etc/group" 2>/dev/null; then inside usermod --append --groups tss maxgreen-agent; fi

say "program in /opt/maxgreen"
[ -x "$root/opt/maxgreen/bin/python" ] || inside python3 -m venv /opt/maxgreen
source=$from
if [ -n "$root" ]; then # the folder may lie outside of the root
  source=/opt/maxgreen/source
  do_it rm -rf "$root$source"
  do_it mkdir -p "$root$source"
  do_it cp -r "$from" "$root$source/"
  source=$source/$(basename "$from")
fi
inside /opt/maxgreen/bin/pip install --quiet --disable-pip-version-check --upgrade "$source[$extras]"
do_it mkdir -p "$root/opt/maxgreen/share"
do_it cp "$here/../docs/agent.md" "$root/opt/maxgreen/share/agent.md"
do_it ln -sf /opt/maxgreen/bin/maxgreen "$root/usr/local/bin/maxgreen"
[ -z "$root" ] || do_it rm -rf "$root/opt/maxgreen/source"

say "settings in /etc/maxgreen, state in /var/lib/maxgreen-agent"
do_it mkdir -p "$root/etc/maxgreen"
if [ ! -e "$root/etc/maxgreen/agent.toml" ]; then
  say "  maxgreen agent config sample > $root/etc/maxgreen/agent.toml"
  if [ -z "$dry" ]; then
    if [ -n "$root" ]; then chroot "$root" /opt/maxgreen/bin/maxgreen agent config sample >"$root/etc/maxgreen/agent.toml"
    else /opt/maxgreen/bin/maxgreen agent config sample >/etc/maxgreen/agent.toml; fi
  fi
fi
inside install -d -m 0700 -o maxgreen-agent -g maxgreen-agent /var/lib/maxgreen-agent

say "devices and unit"
do_it mkdir -p "$root/etc/udev/rules.d" "$root/etc/systemd/system"
say "  $rules"
[ -n "$dry" ] || cat >"$rules" <<'RULES'
SUBSYSTEM=="i2c-dev", GROUP="i2c", MODE="0660"
SUBSYSTEM=="gpio", KERNEL=="gpiochip*", GROUP="gpio", MODE="0660"
RULES
do_it cp "$here/systemd/maxgreen-agent.service" "$unit"
if live; then
  do_it udevadm control --reload
  do_it systemctl daemon-reload
  do_it systemctl enable maxgreen-agent.service
  systemctl is-active --quiet maxgreen-agent.service && do_it systemctl restart maxgreen-agent.service
fi
cat <<'NEXT'
next:
  sudo -u maxgreen-agent /opt/maxgreen/bin/maxgreen agent init
  fill in /etc/maxgreen/agent.toml; /opt/maxgreen/bin/maxgreen agent config check
  sudo systemctl start maxgreen-agent
NEXT
