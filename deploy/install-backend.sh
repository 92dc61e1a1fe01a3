#!/bin/sh
# Installs the backend on Debian 12 or 13: users, program, PostgreSQL, Mosquitto, certificates, settings, units. Run it again to upgrade:
# keys, data and settings stay as they are, a backup is made before, and the version before stays for --rollback.
#   deploy/install-backend.sh --host NAME [--rpc URL] [--deployment FILE] [--ledger postgresql|sqlite] [--influx]
#                             [--dry-run] [--uninstall] [--rollback] [--from WHEEL-OR-FOLDER]
#   --host NAME        how devices reach the broker, and people the pages (DNS name or address)
#   --rpc URL          JSON-RPC of the chain; http://127.0.0.1:8545 without
#   --deployment FILE  what 'maxgreen chain deploy' wrote; without, make it afterwards as /etc/maxgreen/deployment.json
#   --ledger KIND      postgresql (the default), or sqlite: a file, enough for some hundred devices
#   --influx           use the InfluxDB of this machine as view: its token goes to /etc/maxgreen/influx-token
#   --dry-run          say what would be done
#   --rollback         go back to the version before; the ledger of before is in the backup that the upgrade made
#   --uninstall        take away program and units; data, keys, settings, broker and database stay
# The program lies in /opt/maxgreen-releases/N; /opt/maxgreen is a link to the one in use.
set -eu
dry= uninstall= rollback= host= rpc=http://127.0.0.1:8545 deployment= ledger=postgresql influx=
from=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
usage() { sed -n '2,15s/^# \{0,1\}//p' "$0"; }
fail() { echo "install-backend.sh: $*" >&2; exit 1; }
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=1 ;;
    --uninstall) uninstall=1 ;;
    --rollback) rollback=1 ;;
    --influx) influx=1 ;;
    --host|--rpc|--deployment|--ledger|--from)
      [ $# -ge 2 ] || fail "$1 needs a value"
      eval "${1#--}=\$2"
      shift ;;
    -h|--help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
[ -n "$dry" ] || [ "$(id -u)" = 0 ] || fail "run it as root: sudo $0"
case $host in *[!A-Za-z0-9.:-]*) fail "--host $host: a DNS name or an address" ;; esac
case $rpc in *[\"\\]*) fail "--rpc $rpc: a URL" ;; esac
case $ledger in postgresql|sqlite) ;; *) fail "--ledger $ledger: postgresql or sqlite" ;; esac
say() { echo "$*"; }
do_it() { say "  $*"; [ -n "$dry" ] || "$@"; }
live() { [ -d /run/systemd/system ]; }
as() { user=$1; shift; do_it runuser -u "$user" -- "$@"; }
write() { # FILE MODE OWNER, text on stdin; what is there stays
  if [ -e "$1" ]; then cat >/dev/null; return 0; fi
  say "  $1"
  if [ -n "$dry" ]; then cat >/dev/null; return 0; fi
  cat >"$1.new"
  chmod "$2" "$1.new"
  chown "$3" "$1.new"
  mv "$1.new" "$1"
}
releases=/opt/maxgreen-releases state=/var/lib/maxgreen etc=/etc/maxgreen backups=/var/backups/maxgreen broker=/etc/mosquitto/maxgreen
units='maxgreen-ingest.service maxgreen-dapp.service maxgreen-settle.service maxgreen-settle.timer maxgreen-backup.service
  maxgreen-backup.timer maxgreen-ca.service maxgreen-ca.timer'
# an upgrade keeps the ledger that there is
if grep -q '^ledger = "sqlite' $etc/ingest.toml 2>/dev/null; then ledger=sqlite; fi
units_of() { # put a release's units in place of what is there
  for unit in $units; do
    if [ -e "$1/$unit" ]; then do_it cp "$1/$unit" /etc/systemd/system/$unit; elif [ -e /etc/systemd/system/$unit ]; then
      if live; then do_it systemctl disable --now $unit || true; fi
      do_it rm -f /etc/systemd/system/$unit
    fi
  done
}
in_use() { readlink /opt/maxgreen 2>/dev/null | sed 's#.*/##' || true; }
all() { ls $releases 2>/dev/null | grep -x '[0-9]\{4\}' | sort || true; }
numbers() { for number in $(all); do [ ! -e $releases/$number/complete ] || echo $number; done; } # what was made whole
restart() {
  live || return 0
  do_it systemctl daemon-reload
  for unit in maxgreen-ingest.service maxgreen-dapp.service; do
    if systemctl is-active --quiet $unit; then do_it systemctl restart $unit; fi
  done
}

if [ -n "$uninstall" ]; then
  say "taking the backend away"
  if live; then
    for unit in $units; do do_it systemctl disable --now $unit || true; done
  fi
  for unit in $units; do do_it rm -f /etc/systemd/system/$unit; done
  do_it rm -f /usr/local/bin/maxgreen
  do_it rm -rf /opt/maxgreen $releases
  if live; then do_it systemctl daemon-reload; fi
  say "kept: $state (ledger, keys, evidence), $etc (settings), $backups, $broker, and the database"
  exit 0
fi

if [ -n "$rollback" ]; then
  now=$(in_use)
  before=$(numbers | awk -v now="$now" '$0 < now' | tail -n 1)
  [ -n "$before" ] || fail "there is no version before the one in use (${now:-none}) in $releases"
  say "going back from $now to $before"
  if [ -d "$releases/$before/share/systemd" ]; then units_of "$releases/$before/share/systemd"; fi
  do_it ln -sfn "$releases/$before" /opt/maxgreen
  restart
  say "where the version before does not know the ledger: stop the services, then maxgreen restore $backups/NAME"
  exit 0
fi

say "this machine"
. /etc/os-release
[ "${ID:-}" = debian ] && [ "${VERSION_ID:-0}" -ge 12 ] || fail "${PRETTY_NAME:-this system}: it is for Debian 12 or later"
say "  $PRETTY_NAME, $(dpkg --print-architecture)"
if [ -z "$host" ] && [ ! -e $broker/certs/server.crt ]; then fail "--host NAME: how devices reach the broker"; fi

say "packages"
missing=
has() { dpkg -s "$1" >/dev/null 2>&1; }
wanted='python3 python3-venv python3-dev gcc libc6-dev mosquitto libpangoft2-1.0-0 fonts-dejavu-core'
[ $ledger = sqlite ] || wanted="$wanted postgresql postgresql-client"
for package in $wanted; do has "$package" || missing="$missing $package"; done
if [ -n "$missing" ]; then
  do_it apt-get update -qq
  # shellcheck disable=SC2086 # words are meant
  do_it env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $missing
fi

say "user and folders"
grep -q '^maxgreen:' /etc/passwd || do_it useradd --system --home-dir $state --shell /usr/sbin/nologin maxgreen
do_it install -d -m 0711 -o maxgreen -g maxgreen $state
for folder in ca certs certificates evidence settlement; do as maxgreen mkdir -p -m 0700 $state/$folder; done # never as root: the
as maxgreen mkdir -p -m 0755 $state/metrics                                                               # user may have put links there
do_it install -d -m 0700 -o maxgreen -g maxgreen $backups
do_it install -d -m 0755 $etc
do_it install -d -m 0700 $etc/secrets

last=$(all | tail -n 1 | sed 's/^0*//')
release=$releases/$(printf %04d $((${last:-0} + 1)))
say "program in $release"
[ -n "$dry" ] || trap '[ "$(in_use)" = "$(basename "$release")" ] || rm -rf "$release"' EXIT
trap 'exit 130' INT TERM HUP
do_it mkdir -p $releases
do_it python3 -m venv "$release"
do_it env PYPI=1 "$release/bin/pip" install --quiet --disable-pip-version-check --constraint "$here/../constraints.txt" \
  "$from[dapp,ingest,pdf,postgres,s3,settlement]"
do_it mkdir -p "$release/share/systemd"
for unit in $units; do do_it cp "$here/systemd/$unit" "$release/share/systemd/"; done
do_it cp "$here/../docs/operator.md" "$here/../docs/alarms.md" "$release/share/"
do_it "$release/bin/maxgreen" --version
maxgreen=$release/bin/maxgreen

url="sqlite:///$state/ledger.db"
if [ $ledger = postgresql ]; then
  url='postgresql://maxgreen@/maxgreen?host=/var/run/postgresql'
  say "database"
  started=
  if [ -z "$dry" ] && ! runuser -u postgres -- psql -qc 'SELECT 1' >/dev/null 2>&1; then
    do_it service postgresql start
    started=1
    for _ in 1 2 3 4 5 6 7 8 9 10; do
      runuser -u postgres -- psql -qc 'SELECT 1' >/dev/null 2>&1 && break
      sleep 1
    done
  fi
  asked() { [ -z "$dry" ] && [ "$(runuser -u postgres -- psql -Atc "$1")" = 1 ]; }
  asked "SELECT 1 FROM pg_roles WHERE rolname = 'maxgreen'" || as postgres createuser maxgreen
  asked "SELECT 1 FROM pg_database WHERE datname = 'maxgreen'" || as postgres createdb --owner=maxgreen maxgreen
fi

say "certificates"
[ -e $state/ca/ca.key ] || as maxgreen "$maxgreen" ca init --dir $state/ca
for service in ingest dapp; do
  [ -e $state/certs/$service.crt ] || as maxgreen "$maxgreen" ca client $service --dir $state/ca --out $state/certs
done
[ -e $state/certs/server.crt ] || as maxgreen "$maxgreen" ca server "$host" localhost 127.0.0.1 --dir $state/ca --out $state/certs

say "broker"
do_it mkdir -p $broker/certs /etc/systemd/system/mosquitto.service.d
for file in mosquitto.conf acl; do
  [ -e $broker/$file ] || do_it cp "$here/../broker_config/$file" $broker/$file
done
# the list of what was revoked is read where the authority writes it
if [ -z "$dry" ]; then sed -i "s|^# crlfile .*|crlfile $broker/certs/crl.pem|" $broker/mosquitto.conf; fi
# read as the user whose files they are: root would follow a link to anything
copy() { say "  $1 to $broker/certs/$2"; [ -n "$dry" ] || runuser -u maxgreen -- head -c 10000000 "$1" >"$broker/certs/$2"; }
copy $state/certs/ca.crt ca.crt
copy $state/certs/server.crt server.crt
copy $state/ca/crl.pem crl.pem
do_it install -m 0600 -o mosquitto -g mosquitto /dev/null $broker/certs/server.key
copy $state/certs/server.key server.key
do_it chmod 0640 $broker/acl
do_it chgrp mosquitto $broker/acl
do_it cp "$here/../broker_config/mosquitto.service.conf" /etc/systemd/system/mosquitto.service.d/maxgreen.conf

say "settings in $etc"
view=
if [ -n "$influx" ]; then
  view="
[influx]
url = \"http://127.0.0.1:8086\"
token_file = \"$etc/influx-token\"
bucket = \"maxgreen\"
org = \"maxgreen\""
fi
processors=$(nproc)
write $etc/ingest.toml 0644 root:root <<SETTINGS
# 'maxgreen ingest config sample' shows every setting.
ledger = "$url"
key_file = "$state/backend.pem"
evidence = "$state/evidence"
certificates = "$state/certificates"
processes = $processors
[broker]
host = "localhost"
port = 8884
ca = "$state/certs/ca.crt"
certificate = "$state/certs/ingest.crt"
key = "$state/certs/ingest.key"
[chain]
rpc = "$rpc"
deployment = "$etc/deployment.json"
[http]
port = 8080$view
SETTINGS
write $etc/settlement.toml 0644 root:root <<SETTINGS
# 'maxgreen settle config sample' shows every setting.
ledger = "$url"
key_file = "$state/backend.pem"
evidence = "$state/evidence"
output_dir = "$state/settlement"
metrics_dir = "$state/metrics"
rpc = "$rpc"
deployment = "$etc/deployment.json"
operator_file = "operator"
SETTINGS
write $etc/dapp.toml 0644 root:root <<SETTINGS
# 'maxgreen dapp config sample' shows every setting.
ledger = "$url"
evidence = "$state/evidence"
key_file = "$state/backend.pem"
state_file = "$state/dapp.db"
rpc = "$rpc"
deployment = "$etc/deployment.json"
[http]
url = "https://$host"
[live]
enabled = true
host = "localhost"
port = 8884
ca = "$state/certs/ca.crt"
certificate = "$state/certs/dapp.crt"
key = "$state/certs/dapp.key"
SETTINGS
write $etc/influx-token 0600 maxgreen:maxgreen </dev/null
# only the settlement gets it, as a credential of its unit
write $etc/secrets/wallet-password 0600 root:root </dev/null
if [ -n "$deployment" ]; then do_it install -m 0644 "$deployment" $etc/deployment.json; fi

if [ -n "$(in_use)" ] && [ -z "$dry" ]; then
  say "the new version and what is there"
  for service in ingest settle dapp; do # an upgrade must not leave a service that does not start
    old=0 new=0
    runuser -u maxgreen -- /opt/maxgreen/bin/maxgreen $service config check >/dev/null 2>&1 || old=$?
    runuser -u maxgreen -- "$maxgreen" $service config check || new=$?
    [ "$new" = 0 ] || [ "$old" != 0 ] || fail "the new version refuses the settings (see above); the old one stays in use"
  done
  if [ -e $state/backend.pem ] && { [ $ledger = postgresql ] || [ -e $state/ledger.db ]; }; then
    as maxgreen /opt/maxgreen/bin/maxgreen backup $backups ||
      fail "no backup, so no upgrade: the new version would change the ledger (see above)"
  fi
fi
[ -z "${started:-}" ] || do_it service postgresql stop

say "units"
old=/opt/maxgreen/share/systemd # of a version that did not keep its own, for the way back
if [ -n "$(in_use)" ] && [ ! -d $old ]; then
  do_it mkdir -p $old
  for unit in $units; do [ ! -e /etc/systemd/system/$unit ] || do_it cp /etc/systemd/system/$unit $old/; done
fi
units_of "$here/systemd"
if [ -e /opt/maxgreen ] && [ ! -L /opt/maxgreen ]; then do_it rm -rf /opt/maxgreen; fi
before=$(in_use)
do_it touch "$release/complete"
do_it ln -sfn "$release" /opt/maxgreen
do_it ln -sf /opt/maxgreen/bin/maxgreen /usr/local/bin/maxgreen
for number in $(all); do # the one in use and the one before stay
  case $number in "$(in_use)"|"$before") ;; *) do_it rm -rf "$releases/$number" ;; esac
done
if live; then
  do_it systemctl enable mosquitto.service
  do_it systemctl restart mosquitto.service
  restart
fi
cat <<'NEXT'
next (docs/operator.md says each in full):
  the operator's wallet:  sudo -u maxgreen maxgreen wallet new operator      its password also into /etc/maxgreen/secrets/wallet-password
  the contracts:          maxgreen chain deploy … --deployment deployment.json; sudo install -m 0644 deployment.json /etc/maxgreen/
  begin:                  sudo systemctl enable --now maxgreen-ingest maxgreen-dapp maxgreen-settle.timer maxgreen-backup.timer maxgreen-ca.timer
  look:                   sudo -u maxgreen maxgreen doctor --backups /var/backups/maxgreen
NEXT
