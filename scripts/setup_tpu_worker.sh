#!/usr/bin/env bash
# From a bare TPU VM to a running worker. Run at every boot as the startup script of `layertap tpu
# create --startup`, or by hand; a second run changes nothing. See docs/tpu.md.
#
# What to do is read from the instance's metadata, which `layertap tpu create` fills:
#   layertap-worker-id       the worker's id (TPU_WORKER_ID), which a recreated TPU inherits
#   layertap-package         a wheel (gs://, https:// or a path), a folder, or git+https://...
#   layertap-extract-flags   the flags of `layertap extract`; {worker} stands for the worker's id
# The environment goes before it: LAYERTAP_WORKER_ID, LAYERTAP_PACKAGE, LAYERTAP_EXTRACT_FLAGS. And
# these, for other places and for tests:
#   LAYERTAP_HOME            where everything goes (/opt/layertap)
#   LAYERTAP_EXTRAS          extras to install (tpu)
#   LAYERTAP_PIP_FLAGS, LAYERTAP_VENV_FLAGS    more flags for these
#   LAYERTAP_SUPERVISOR      systemd, loop, or auto: systemd where it runs and we are root
#   LAYERTAP_START           no: set up, and start nothing
#   LAYERTAP_RESTART_SECONDS how long a crashed worker rests (10)
#   LAYERTAP_UNIT_FOLDER, LAYERTAP_METADATA_URL, LAYERTAP_STORAGE_URL
#
# The worker is started again when it crashes. Not when it ends well (0) or says that its input is
# wrong (2): the same flags would say the same again. What it has done is remembered in the bucket,
# so starting it too often costs little.
set -euo pipefail

home=$(realpath -m "${LAYERTAP_HOME:-/opt/layertap}")
metadata_url=${LAYERTAP_METADATA_URL:-http://metadata.google.internal/computeMetadata/v1}
storage_url=${LAYERTAP_STORAGE_URL:-https://storage.googleapis.com}
unit_folder=${LAYERTAP_UNIT_FOLDER:-/etc/systemd/system}
restart_seconds=${LAYERTAP_RESTART_SECONDS:-10}
extras=${LAYERTAP_EXTRAS-tpu}
read -ra pip_flags <<<"${LAYERTAP_PIP_FLAGS:-}"
read -ra venv_flags <<<"${LAYERTAP_VENV_FLAGS:-}"
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
changed=no

main() {
    mkdir -p "$home/work"
    exec 8>>"$home/setup.lock"
    flock 8 # two at a time would install into one another
    local worker package flags
    worker=${LAYERTAP_WORKER_ID:-$(attribute layertap-worker-id)}
    package=${LAYERTAP_PACKAGE:-$(attribute layertap-package)}
    flags=${LAYERTAP_EXTRACT_FLAGS:-$(attribute layertap-extract-flags)}
    [[ $worker =~ ^[0-9]+$ ]] || fail "the worker id is '$worker', not a number: set the metadata layertap-worker-id"
    [[ -n $package ]] || fail "no package: set the metadata layertap-package (layertap tpu create --package)"
    [[ -n $flags ]] || fail "no flags: set the metadata layertap-extract-flags (layertap tpu create --extract_flags)"
    install_package "$package"
    write_worker "$worker" "${flags//\{worker\}/$worker}"
    if [[ $(supervisor) == systemd ]]; then
        write_unit
        [[ ${LAYERTAP_START:-yes} == no ]] || start_unit
    else
        write_loop
        [[ ${LAYERTAP_START:-yes} == no ]] || start_loop
    fi
    say "worker $worker is set up in $home"
}

say() { printf '%s setup_tpu_worker: %s\n' "$(date -u +%FT%TZ)" "$*"; }

fail() {
    say "error: $*" >&2
    exit 2
}

# The value of an instance attribute; nothing where there is none.
attribute() {
    local status
    # Into a file: on the standard output, what came before a retry would stay.
    status=$(curl -sS --retry 5 --retry-connrefused --max-time 60 -H 'Metadata-Flavor: Google' -w '%{http_code}' \
        -o "$answer" "$metadata_url/instance/attributes/$1") || fail "no answer from the metadata server $metadata_url"
    case $status in
    200) cat "$answer" ;;
    404) ;;
    *) fail "the metadata server answers $status for the attribute $1" ;;
    esac
}

# Write the standard input to $1 (mode $2), unless the file says so already.
write_file() {
    local content
    content=$(cat)
    [[ -f $1 && $(<"$1") == "$content" ]] && return
    printf '%s\n' "$content" >"$1.new"
    chmod "$2" "$1.new"
    mv "$1.new" "$1"
    changed=yes
}

install_package() {
    local wanted="$1 [$extras]"
    [[ -f $home/installed && $(<"$home/installed") == "$wanted" ]] && return
    local source=$1
    [[ $source != gs://* ]] || source=$(fetch_wheel "$source")
    [[ $source == *://* ]] || source=$(file_url "$source")
    [[ -x $home/venv/bin/pip ]] || "$(python)" -m venv "${venv_flags[@]}" "$home/venv"
    say "installing layertap[$extras] from $1"
    local install=(install --disable-pip-version-check --quiet "${pip_flags[@]}") another=no
    [[ ! -e $home/venv/bin/layertap ]] || another=yes
    "$home/venv/bin/pip" "${install[@]}" "layertap[$extras] @ $source"
    # Of a version that is installed already pip takes nothing, whatever it was made from.
    [[ $another == no ]] || "$home/venv/bin/pip" "${install[@]}" --force-reinstall --no-deps "layertap[$extras] @ $source"
    write_file "$home/installed" 644 <<<"$wanted"
    changed=yes
}

file_url() {
    local path
    path=$(realpath -e "$1" 2>/dev/null) || fail "there is no package $1"
    printf 'file://%s' "${path// /%20}"
}

# A Python of at least 3.11. The images of TPU VMs are Ubuntu 22.04, which has 3.10: there, uv
# brings one.
python() {
    local name
    for name in python3.13 python3.12 python3.11 python3; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    say "no Python of at least 3.11 here; getting one with uv" >&2
    python3 -m pip --version >/dev/null 2>&1 || { apt-get update -q && apt-get install -qy python3-pip; } >&2
    python3 -m pip install --quiet --upgrade --target "$home/uv" uv >&2
    export UV_PYTHON_INSTALL_DIR=$home/python
    "$home/uv/bin/uv" python install --quiet 3.12 >&2
    "$home/uv/bin/uv" python find --managed-python 3.12
}

# Bring a wheel from a bucket with the VM's own account, without gcloud; prints the path.
fetch_wheel() {
    local path=${1#gs://} token object
    token=$(curl -fsS --retry 5 --retry-connrefused -H 'Metadata-Flavor: Google' \
        "$metadata_url/instance/service-accounts/default/token") || fail "the VM has no service account to read $1 with"
    token=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["access_token"])' <<<"$token")
    object=$(python3 -c 'import sys, urllib.parse; print(urllib.parse.quote(sys.argv[1], safe=""))' "${path#*/}")
    mkdir -p "$home/packages"
    curl -fsS --retry 5 -H "Authorization: Bearer $token" -o "$home/packages/${path##*/}" \
        "$storage_url/storage/v1/b/${path%%/*}/o/$object?alt=media" || fail "cannot read $1 with the VM's account"
    printf '%s' "$home/packages/${path##*/}"
}

# $home/run-worker: one run of the worker, in the foreground.
write_worker() {
    local flags words
    write_file "$home/worker.env" 644 <<<"TPU_WORKER_ID=$1"
    # xargs minds quotes as a shell does, and does nothing else that a shell would do to the string.
    words=$(xargs -n 1 printf '%s\n' <<<"$2") || fail "these flags cannot be taken apart, are the quotes in pairs? $2"
    words+=$(multihost_flags)
    mapfile -t flags <<<"$words"
    write_file "$home/run-worker" 755 <<EOF
#!/usr/bin/env bash
# Written by setup_tpu_worker.sh.
set -euo pipefail
source $(printf %q "$home/worker.env")
cd $(printf %q "$home/work")
export HF_HOME=\${HF_HOME:-$(printf %q "$home/huggingface")}
# The id goes as a flag: to libtpu, a variable TPU_WORKER_ID may mean the number of this host within
# its slice.
exec env -u TPU_WORKER_ID $(printf %q "$home/venv/bin/layertap") extract --worker_id "\$TPU_WORKER_ID"$(printf ' %q' "${flags[@]}")
EOF
}

# On a slice of several hosts, each host runs the same worker; these flags make them one program.
multihost_flags() {
    [[ -z ${LAYERTAP_EXTRACT_FLAGS:-} ]] || return 0 # given by hand: whoever gives them knows
    local endpoints host hosts
    endpoints=$(attribute worker-network-endpoints)
    IFS=, read -ra hosts <<<"$endpoints"
    ((${#hosts[@]} > 1)) || return 0
    host=$(attribute agent-worker-number)
    # Each endpoint is a host name or address, or name:id:address.
    printf '\n%s' --multihost --num_hosts "${#hosts[@]}" --host_id "$host" --coordinator_address "${hosts[0]##*:}:8476"
}

supervisor() {
    case ${LAYERTAP_SUPERVISOR:-auto} in
    auto) if [[ -d /run/systemd/system && $EUID == 0 ]]; then echo systemd; else echo loop; fi ;;
    systemd | loop) echo "$LAYERTAP_SUPERVISOR" ;;
    *) fail "LAYERTAP_SUPERVISOR is '$LAYERTAP_SUPERVISOR': systemd, loop or auto" ;;
    esac
}

write_unit() {
    write_file "$unit_folder/layertap-worker.service" 644 <<EOF
[Unit]
Description=Layertap worker
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart=$home/run-worker
Restart=on-failure
RestartPreventExitStatus=2
RestartSec=$restart_seconds
# A preempted VM has up to half a minute; the worker finishes the shard that it is writing.
TimeoutStopSec=25

[Install]
WantedBy=multi-user.target
EOF
}

start_unit() {
    systemctl daemon-reload
    if ! systemctl is-enabled --quiet layertap-worker 2>/dev/null; then
        systemctl enable --quiet --now layertap-worker
    elif [[ $changed == yes ]]; then
        systemctl restart layertap-worker
    fi # otherwise systemd itself started it at boot
}

# Without systemd: a loop that does what the unit says.
write_loop() {
    write_file "$home/supervise" 755 <<EOF
#!/usr/bin/env bash
# Written by setup_tpu_worker.sh: keeps the worker running. Stop both with: kill \$(cat $home/supervise.pid)
set -euo pipefail
cd $(printf %q "$home")
exec 9>>supervise.lock
flock -n 9 || exit 0 # there is one already; the worker holds the lock too, so that it never runs twice
trap 'kill "\$worker" 2>/dev/null || true; wait; exit 143' TERM INT
echo \$\$ >supervise.pid
while true; do
    ./run-worker &
    worker=\$!
    status=0
    wait "\$worker" || status=\$?
    echo "worker ended with status \$status"
    ((status != 0 && status != 2)) || break
    sleep $restart_seconds
done
echo "\$status" >ended
EOF
}

start_loop() {
    if [[ $changed == yes ]]; then
        stop_loop
        rm -f "$home/ended"
    fi
    [[ ! -e $home/ended ]] || return 0 # it ended with 0 or 2, and nothing is new
    flock -n "$home/supervise.lock" true || return 0 # it runs
    setsid nohup "$home/supervise" >>"$home/worker.log" 2>&1 </dev/null 8>&- &
}

stop_loop() {
    [[ -f $home/supervise.pid ]] || return 0
    # Whoever holds the lock is the loop; a pid in a file may be anybody's by now.
    if ! flock -n "$home/supervise.lock" true; then
        kill "$(<"$home/supervise.pid")" 2>/dev/null || true
        flock -w 60 "$home/supervise.lock" true || fail "the worker before this one does not stop; see $home/worker.log"
    fi
}

main
