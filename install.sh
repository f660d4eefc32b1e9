#!/bin/sh
# Install Edgewise as a systemd service from this source tree, on any distribution with Python 3.11
# or later. Run again, it upgrades; configuration and state stay. Debian has a package: make deb.
#
# Usage: sudo ./install.sh [--uninstall [--purge]]
#   --uninstall   stop and remove the service and the program
#   --purge       the configuration and the state too
# PYTHON names the interpreter, PREFIX where it goes (/usr/local).
set -eu

usage() {
    sed -n '5,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

action=install
purge=no
for argument in "$@"; do
    case $argument in
        --uninstall) action=uninstall ;;
        --purge) purge=yes ;;
        *) usage ;;
    esac
done
[ "$purge" = no ] || [ "$action" = uninstall ] || usage
[ "$(id -u)" -eq 0 ] || { echo "install.sh: needs root" >&2; exit 1; }

source=$(cd "$(dirname "$0")" && pwd)
prefix=${PREFIX:-/usr/local}
home=$prefix/lib/edgewise
program=$prefix/bin/edgewise
units=/etc/systemd/system

manages() { [ -d /run/systemd/system ]; }

if [ "$action" = uninstall ]; then
    if manages; then
        systemctl disable --now edgewise.service 2>/dev/null || true
        systemctl stop 'edgewise@*.service' 2>/dev/null || true
    fi
    rm -f "$units"/edgewise.service "$units"/edgewise@.service \
        "$units"/*.wants/edgewise.service "$units"/*.wants/edgewise@*.service \
        "$units"/edgewise.service.d/backoff.conf "$units"/edgewise@.service.d/backoff.conf
    rm -rf "$home" "$program" /etc/sysusers.d/edgewise.conf
    rmdir "$units"/edgewise.service.d "$units"/edgewise@.service.d 2>/dev/null || true
    if [ "$purge" = yes ]; then
        rm -rf /etc/edgewise "$units"/edgewise.service.d "$units"/edgewise@*.service.d \
            /var/lib/private/edgewise /var/lib/private/edgewise-* \
            /var/lib/edgewise /var/lib/edgewise-*
        userdel edgewise 2>/dev/null || true
    fi
    if manages; then systemctl daemon-reload; fi
    echo "Edgewise is removed."
    exit 0
fi

# Beside the old one first, so that an installation that fails leaves that one as it is.
rm -rf "$home.new"
"$source/deploy/make-venv" "$home.new" "${PYTHON:-python3}"
sed -i "1s|.*|#!$home/bin/python|" "$home.new/bin/edgewise"
"$home.new/bin/python" -m compileall -q -j 0 "$home.new/lib" >/dev/null || true
rm -rf "$home.old"
[ ! -d "$home" ] || mv "$home" "$home.old"
mv "$home.new" "$home"
rm -rf "$home.old"

install -d "$prefix/bin" /etc/edgewise "$units"
ln -sfn "$home/bin/edgewise" "$program"
[ -e /etc/edgewise/edgewise.toml ] ||
    install -m 0644 "$source/deploy/edgewise.toml" /etc/edgewise/edgewise.toml
version=$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
for unit in edgewise.service edgewise@.service; do
    sed "s|^ExecStart=/usr/bin/edgewise|ExecStart=$program|" "$source/systemd/$unit" >"$units/$unit"
    chmod 0644 "$units/$unit"
    # Older versions warn of keys that they do not know.
    if [ "${version:-0}" -ge 254 ]; then
        install -D -m 0644 "$source/systemd/backoff.conf" "$units/$unit.d/backoff.conf"
    fi
done
install -D -m 0644 "$source/systemd/edgewise.sysusers" /etc/sysusers.d/edgewise.conf
if manages; then
    systemd-sysusers edgewise.conf
    systemctl daemon-reload
    systemctl enable edgewise.service
    systemctl restart edgewise.service
    systemctl try-restart 'edgewise@*.service'
    echo "Edgewise runs. Edit /etc/edgewise/edgewise.toml, then: systemctl reload edgewise"
else
    echo "Edgewise is installed. No systemd runs here, so it was not started."
fi
