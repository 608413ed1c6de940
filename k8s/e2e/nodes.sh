#!/usr/bin/env bash
# A real Kubernetes of several nodes on one Linux machine, as root and without Docker: the
# test of this folder runs Skein on it. Every node is a set of namespaces of its own with
# kubelet, kube-proxy, containerd and runc; pods are real containers.
#
#   nodes.sh lacks DIR             say what is missing here to run it, and nothing if it can; DIR: see up
#   nodes.sh up DIR STATE [N]      start N nodes n1..nN (3); DIR is that of `scripts/kube.sh nodes`, STATE a folder
#   nodes.sh down [STATE]          end it and remove everything but STATE/log
#   The commands below find the cluster by SKEIN_NODES=STATE:
#   nodes.sh status                processes with their memory
#   nodes.sh exec NODE CMD...      run CMD as root in the node's namespaces; the machine's files are to be seen
#   nodes.sh run CMD...            run CMD beside the control plane, with KUBECONFIG and PATH set
#   nodes.sh kubectl ARGS...       the same as: run kubectl ARGS...
#   nodes.sh load IMAGE.tar...     import images on every node that runs, and on those that start later
#   nodes.sh crash NODE            power off: SIGKILL for all of the node at once, containers too
#   nodes.sh start NODE            boot a crashed node again: same disk, empty /run, new boot id
#
# All of it lives in one outer set of namespaces (net, mount, pid, ipc, uts) with a /run, a
# /dev and sysctls of its own, each node in a nested one; the machine's interfaces are not
# even visible in there. Outside there are STATE, STATE.lock and cgroups
# <hierarchy>/skein-e2e-<id>, which go with `down`, or when the supervisor ends by anything
# but SIGKILL; what that leaves, files and empty cgroups, the next `up` or `down` sweeps.
set -euo pipefail
export LC_ALL=C
PROG=$(readlink -f "${BASH_SOURCE[0]}")
NET=10.243.0 API=https://10.243.0.1:6443
GATES=GenericWorkload=true # PodGroups: pods that are scheduled together, or not at all
SYSCTL_MASK="vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000"

die() { echo "nodes.sh: $*" >&2; exit 1; }
usage() { awk 'NR>1 && /^#/ {sub(/^# ?/,""); print; next} NR>1 {exit}' "$PROG" >&2; exit 2; }
quiet() { local o; o=$("$@" 2>&1); } # drops output without a redirection to /dev/null
ms() { echo $((${EPOCHREALTIME/./} / 1000)); }
secs() { awk -v a="$1" 'BEGIN {printf "%.1fs", a/1000}'; }
await() { # SECONDS WHAT CMD... : poll
  local end=$((SECONDS + $1)) what=$2; shift 2
  until quiet "$@"; do [ $SECONDS -lt $end ] || { echo "timeout: $what" >&2; return 1; }; sleep 0.1; done
}
gone() { [ ! -e "/proc/$1" ] || grep -q '^State:.Z' "/proc/$1/status"; }
ns_of() { readlink "/proc/$1/ns/net" "/proc/$1/ns/mnt" "/proc/$1/ns/pid"; }
set_state() {
  [ -n "${1:-}" ] || die "set SKEIN_NODES to the cluster's STATE_DIR"
  STATE=$(readlink -m "$1"); CG=skein-e2e-$(printf %s "$STATE" | cksum | cut -d' ' -f1)
  [ "${#STATE}" -gt 1 ] || die "bad STATE_DIR"
}
visible() { # these trees are replaced inside the cluster
  case "$(readlink -m "$1")/" in /run/* | /var/run/* | /var/lib/* | /var/log/* | /dev/* | /proc/* | /sys/*) die "$1: not under /run, /var/lib, /var/log, /dev, /proc or /sys" ;; esac
}
load_env() { [ -f "$STATE/env" ] || die "no cluster in $STATE"; . "$STATE/env"; export PATH=$CACHE:$PATH; }
devnull_ok() { [ -c /dev/null ] && [ "$(stat -c %t:%T /dev/null)" = 1:3 ]; }

# ---- cgroups: the one thing namespaces do not clean up ----
cg_mounts() { awk '/ - cgroup2? / {print $5}' /proc/self/mountinfo; }
cg_remove() { # PATH below each hierarchy; refuses anything that is not ours
  local m i left
  case $1 in skein-e2e-[0-9]*) ;; *) die "cg_remove $1" ;; esac
  for i in {1..100}; do
    left=
    for m in $(cg_mounts); do
      [ -d "$m/$1" ] || continue
      quiet find "$m/$1" -depth -type d -exec rmdir {} + || left=$m
    done
    [ -n "$left" ] || return 0
    sleep 0.1
  done
  echo "warning: cgroups left in $left/$1" >&2
}
cg_make() { # PATH : in each v1 hierarchy; an empty cpuset would refuse every task
  local m d f
  for m in $(awk '/ - cgroup / {print $5}' /proc/self/mountinfo); do
    mkdir -p "$m/$1"
    [ -e "$m/cpuset.cpus" ] || continue
    d=$m
    for f in ${1//\// }; do cat "$d/cpuset.cpus" >"$d/$f/cpuset.cpus"; cat "$d/cpuset.mems" >"$d/$f/cpuset.mems"; d=$d/$f; done
  done
}

# ---- outside: supervisor ----
supervisor_pid() { # prints the pid if the recorded process is alive and really is our supervisor
  local p; [ -f "$STATE/supervisor.pid" ] && p=$(<"$STATE/supervisor.pid") && [ -r "/proc/$p/cmdline" ] || return 1
  tr '\0' ' ' <"/proc/$p/cmdline" | grep -qF "__supervise $STATE " && ! gone "$p" && echo "$p"
}
inner_pid() { # pid of the outer namespaces' init; checked against the recorded namespaces, so a reused pid is not taken
  local p; [ -f "$STATE/inner.pid" ] && [ -f "$STATE/inner.ns" ] && p=$(<"$STATE/inner.pid") && [ -e "/proc/$p/ns/net" ] || return 1
  [ "$(ns_of "$p")" = "$(<"$STATE/inner.ns")" ] && echo "$p"
}
enter() { # CMD... in the outer namespaces
  local p; p=$(inner_pid) || die "cluster is not up"
  exec nsenter -t "$p" -n -m -p -i -u --wd="$PWD" -- setpriv --pdeathsig KILL "$@" # the command ends with its caller
}
preflight() {
  local x
  [ "$(id -u)" = 0 ] || die "must be root (namespaces, mounts, cgroups)"
  for x in unshare nsenter setpriv setsid flock ip iptables runc openssl curl pgrep mount awk; do quiet command -v $x || die "missing $x (Debian: apt-get install runc iptables iproute2 util-linux openssl curl procps)"; done
  for x in kube-apiserver kubelet kubectl kube-proxy etcd containerd containerd-shim-runc-v2 ctr cni/bridge coredns; do [ -x "$CACHE/$x" ] || die "missing $CACHE/$x: run make kube-nodes"; done
  [ -f "$CACHE/pause.tar" ] || die "missing $CACHE/pause.tar: run make kube-nodes"
  grep -q ' - cgroup .*memory' /proc/self/mountinfo || die "only cgroup v1 machines are supported (on v2 the cgroup set-up here has to be ported)"
  quiet runc features && ! runc features | grep -q '"seccomp"' && die "this runc was built without seccomp"
  devnull_ok || die "/dev/null is not the character device 1:3; repair the machine first"
}
cmd_up() {
  [ $# -ge 2 ] || usage
  CACHE=$(readlink -f "$1") || die "no such directory: $1"; set_state "$2"; visible "$CACHE"; visible "$STATE"; visible "$PROG"
  NODES=${3:-3}; [[ $NODES =~ ^[1-9][0-9]?$ ]] || die "NODES must be 1..99"
  preflight
  mkdir -p "$STATE"
  [ -z "$(ls -A "$STATE")" ] || [ -f "$STATE/.nodes" ] || die "$STATE is not empty and not a state directory"
  exec 9>"$STATE.lock"; flock -w 60 9 || die "another command holds $STATE.lock"
  if quiet supervisor_pid && quiet inner_pid && [ -f "$STATE/ready" ]; then echo "already up: $STATE"; return; fi
  stop_all; wipe; rm -rf "$STATE/log"; mkdir -p "$STATE/log"; touch "$STATE/.nodes"
  local v
  for v in CACHE NODES NODE_GRACE EVICT_AFTER; do printf '%s=%q\n' $v "${!v}"; done >"$STATE/env"
  if [ "${FOREGROUND:-0}" = 1 ]; then exec bash "$PROG" __supervise "$STATE" - 9>&-; fi
  setsid -f bash "$PROG" __supervise "$STATE" - >"$STATE/log/supervisor.log" 2>&1 </dev/null 9>&-
  trap 'stop_all; wipe; rm -f "$STATE.lock"; exit 143' TERM INT HUP
  local end=$((SECONDS + 180))
  until [ -f "$STATE/ready" ]; do
    if [ -f "$STATE/failed" ] || [ $SECONDS -ge $end ]; then
      tail -n 20 "$STATE/log/supervisor.log" >&2; stop_all; rm -f "$STATE.lock"; die "cluster did not start; see $STATE/log"
    fi
    sleep 0.1
  done
  trap - TERM INT HUP
  cat "$STATE/ready"; echo "export SKEIN_NODES=$STATE"
}
supervise() { # the parent of everything; its end, even by SIGKILL, is the end of the cluster
  U='' INNER=''
  trap 'supervise_end' EXIT; trap 'exit 143' TERM INT HUP
  echo $$ >"$STATE/supervisor.pid"; ns_of self >"$STATE/host.ns"
  cg_remove "$CG"
  setpriv --pdeathsig KILL unshare --net --mount --pid --ipc --uts --propagation private --fork --kill-child=KILL --mount-proc \
    bash "$PROG" __inner "$STATE" </dev/null & U=$!
  while INNER=$(pgrep -P $U || true); [ -z "$INNER" ] || [ "$(ns_of "$INNER" | tail -n 1)" = "$(tail -n 1 "$STATE/host.ns")" ]; do
    gone $U && exit 1; sleep 0.02
  done
  echo "$INNER" >"$STATE/inner.pid"
  wait $U || true
}
supervise_end() {
  trap '' TERM INT HUP
  if [ -n "$U" ] && ! gone "$U"; then kill -KILL "$U"; fi
  wait || true
  [ -z "$INNER" ] || await 10 "end of the cluster's init" gone "$INNER" || true
  cg_remove "$CG"; rm -f "$STATE/inner.pid" "$STATE/inner.ns"
  if [ -f "$STATE/ready" ]; then wipe; else touch "$STATE/failed"; rm -f "$STATE/supervisor.pid"; fi # a failed start is kept for a look
  rm -f "$STATE.lock"
}
stop_all() { # idempotent; also sweeps what a SIGKILLed supervisor left (cgroups only: the rest dies with it)
  local p i
  if p=$(supervisor_pid); then
    kill -TERM "$p"; for i in {1..200}; do gone "$p" && break; sleep 0.1; done
    gone "$p" || { kill -KILL "$p"; sleep 0.5; }
  fi
  if p=$(inner_pid); then kill -KILL "$p"; await 10 "end of the cluster's init" gone "$p"; fi
  cg_remove "$CG"
}
wipe() { # never while a mount inside the cluster could still point out of STATE
  quiet inner_pid && die "still running"
  grep -qF " $STATE/" /proc/self/mountinfo && die "something is mounted under $STATE"
  find "$STATE" -mindepth 1 -maxdepth 1 ! -name log ! -name .nodes -exec rm -rf {} +
}
cmd_down() {
  set_state "${1:-${SKEIN_NODES:-}}"
  [ -f "$STATE/.nodes" ] && [ -f "$STATE/env" ] || { rm -f "$STATE.lock"; echo "already down"; return; }
  exec 9>"$STATE.lock"; flock -w 60 9 || die "another command holds $STATE.lock"
  local t; t=$(ms); stop_all; wipe; rm -f "$STATE.lock"
  devnull_ok || die "/dev/null is damaged"
  echo "down $(secs $(($(ms) - t)))"
}

# ---- inside the outer namespaces ----
guard_inside() { # every command that touches interfaces, routes or mounts comes after this
  local a b
  mapfile -t a < <(ns_of self); mapfile -t b <"$STATE/host.ns"
  [ ${#a[@]} = 3 ] && [ ${#b[@]} = 3 ] && [ "${a[0]}" != "${b[0]}" ] && [ "${a[1]}" != "${b[1]}" ] && [ "${a[2]}" != "${b[2]}" ] || die "refuse: not in namespaces of our own"
  [ ! -f "$STATE/inner.ns" ] || [ "$(ns_of self)" = "$(<"$STATE/inner.ns")" ] || die "refuse: not in this cluster's namespaces"
}
mask_sysctls() { # the kubelet writes these machine-wide values: give it files that already hold what it wants
  local kv d f
  for d in vm kernel fs; do mount --bind /proc/sys/$d /proc/sys/$d; mount -o remount,ro,bind /proc/sys/$d; done
  for kv in $SYSCTL_MASK; do
    f=/run/sysctl/${kv%%=*}; mkdir -p "${f%/*}"; echo "${kv#*=}" >"$f"
    [ ! -e "/proc/sys/${kv%%=*}" ] || mount --bind "$f" "/proc/sys/${kv%%=*}"
  done
}
private_dev() { # so that nothing in here, whatever it does, can replace the machine's /dev/null
  local d=/run/dev x
  mkdir $d; mount -t tmpfs -o mode=755 dev $d
  for x in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 kmsg:1:11 tty:5:0 net/tun:10:200 fuse:10:229; do
    mkdir -p "$(dirname "$d/${x%%:*}")"; mknod -m 666 "$d/${x%%:*}" c $(cut -d: -f2,3 <<<"$x" | tr : ' ')
  done
  mkdir $d/pts $d/shm $d/mqueue
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts $d/pts; mount -t tmpfs -o mode=1777 shm $d/shm; mount -t mqueue mqueue $d/mqueue
  ln -s pts/ptmx $d/ptmx; ln -s /proc/self/fd $d/fd; ln -s fd/0 $d/stdin; ln -s fd/1 $d/stdout; ln -s fd/2 $d/stderr
  mount --rbind $d /dev
}
spawn() { local n=$1; shift; setsid "$@" >"$STATE/log/$n.log" 2>&1 </dev/null 9>&- & echo $! >"$STATE/pids/$n"; }
kubeconfig() { # FILE TOKEN
  cat >"$1" <<Y
apiVersion: v1
kind: Config
clusters: [{name: e2e, cluster: {server: "$API", certificate-authority: $STATE/pki/apiserver.crt}}]
users: [{name: u, user: {token: "$2"}}]
contexts: [{name: e2e, context: {cluster: e2e, user: u}}]
current-context: e2e
Y
}
kubectl_() { "$CACHE/kubectl" --kubeconfig="$STATE/admin.kubeconfig" --cache-dir="$STATE/kubecache" "$@"; }
healthy() { [ "$(curl -sk --max-time 2 "$1")" = ok ]; }
nodes_ready() { [ "$(kubectl_ get nodes -o 'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' | grep -c True)" -ge "$1" ]; }
inner() {
  trap 'rc=$?; [ $rc = 0 ] || touch "$STATE/failed"; exit $rc' EXIT
  local t0 t1 t2 i n tok
  t0=$(ms)
  guard_inside
  [ $$ = 1 ] && [ -z "$(ip -o addr show scope global)" ] && [ -z "$(ip route show)" ] && [ -z "$(ip -o link show type veth)" ] || die "refuse: this network namespace is not fresh"
  mount -t tmpfs -o mode=755 run /run; mkdir -p /run/lock
  private_dev; mask_sysctls
  mount -o remount,ro,bind /sys
  hostname control; ip link set lo up
  ip link add br0 type bridge; ip addr add $NET.1/24 dev br0; ip link set br0 up
  echo 1 >/proc/sys/net/ipv4/ip_forward
  export HOME=$STATE/home TMPDIR=$STATE/tmp; mkdir -p "$HOME" "$TMPDIR" "$STATE"/{pids,pki,images,etcd}; cd "$STATE"
  ns_of self >"$STATE/inner.ns.new"; mv "$STATE/inner.ns.new" "$STATE/inner.ns"
  cg_make "$CG"
  (umask 077
    openssl genrsa -out pki/sa.key 2048 2>log/openssl.log; openssl rsa -in pki/sa.key -pubout -out pki/sa.pub 2>>log/openssl.log
    : >pki/tokens.csv
    for n in admin:admin:system:masters kcm:system:kube-controller-manager: sched:system:kube-scheduler: proxy:system:kube-proxy: $(for ((i = 1; i <= NODES; i++)); do echo "n$i:system:node:n$i:system:nodes"; done); do
      tok=$(openssl rand -hex 16)
      case $n in
      admin:*) echo "$tok,admin,admin,system:masters" ;;
      n[0-9]*) echo "$tok,system:node:${n%%:*},${n%%:*},system:nodes" ;;
      *) n=${n%:}; echo "$tok,${n#*:},${n%%:*}" ;;
      esac >>pki/tokens.csv
      kubeconfig "${n%%:*}.kubeconfig" "$tok"
    done)
  spawn etcd etcd --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level warn # client 127.0.0.1:2379
  spawn kube-apiserver kube-apiserver --feature-gates=$GATES --runtime-config=scheduling.k8s.io/v1beta1=true --etcd-servers=http://127.0.0.1:2379 --cert-dir="$STATE/pki" --secure-port=6443 --advertise-address=$NET.1 \
    --token-auth-file=pki/tokens.csv --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --service-account-issuer=https://kubernetes.default.svc --service-account-signing-key-file=pki/sa.key --service-account-key-file=pki/sa.pub \
    --service-cluster-ip-range=10.96.0.0/16 --allow-privileged=true --kubelet-preferred-address-types=InternalIP --enable-aggregator-routing=true \
    --default-not-ready-toleration-seconds="$EVICT_AFTER" --default-unreachable-toleration-seconds="$EVICT_AFTER" --profiling=false --v=1
  await 60 "kube-apiserver ready" healthy $API/readyz
  t1=$(ms)
  spawn kube-controller-manager kube-controller-manager --feature-gates=$GATES --kubeconfig=kcm.kubeconfig --use-service-account-credentials=true --service-account-private-key-file=pki/sa.key \
    --root-ca-file="$STATE/pki/apiserver.crt" --leader-elect=false --bind-address=127.0.0.1 --cert-dir="$STATE/pki/kcm" --node-monitor-period=2s --node-monitor-grace-period="$NODE_GRACE" --v=1
  spawn kube-scheduler kube-scheduler --feature-gates=$GATES --kubeconfig=sched.kubeconfig --authentication-kubeconfig=sched.kubeconfig --authorization-kubeconfig=sched.kubeconfig \
    --leader-elect=false --bind-address=127.0.0.1 --cert-dir="$STATE/pki/sched" --v=1
  # cluster DNS as a process on the bridge, no pod needed
  printf '.:53 {\n bind %s.1\n errors\n kubernetes cluster.local in-addr.arpa {\n  kubeconfig %s/admin.kubeconfig\n  pods insecure\n  ttl 1\n }\n}\n' $NET "$STATE" >Corefile
  spawn coredns coredns -conf Corefile
  local w=(); for ((i = 1; i <= NODES; i++)); do node_up n$i & w+=($!); done
  for i in "${w[@]}"; do wait "$i" || die "a node failed to start"; done
  await 60 "controller-manager" healthy https://127.0.0.1:10257/healthz
  await 60 "scheduler" healthy https://127.0.0.1:10259/healthz
  await 60 "default service account" kubectl_ get sa default
  await 90 "$NODES Ready nodes" nodes_ready "$NODES"
  t2=$(ms)
  echo "up: $NODES nodes Ready in $(secs $((t2 - t0))) (kube-apiserver in $(secs $((t1 - t0))))" >"$STATE/ready.new"; mv "$STATE/ready.new" "$STATE/ready"
  cat "$STATE/ready"
  trap - EXIT
  while :; do sleep 3600 & wait $! || true; done # bash as init also reaps orphans, which `sleep infinity` would not
}

# ---- nodes ----
holder_of() { # pid, in the outer pid namespace, of the node's init
  local p; [ -f "$STATE/$1/holder" ] && p=$(<"$STATE/$1/holder") && [ -e "/proc/$p/root/run/holder-$1" ] && echo "$p"
}
node_arg() { [[ ${1:-} =~ ^n([1-9][0-9]?)$ ]] && [ "${BASH_REMATCH[1]}" -le "$NODES" ] || die "no such node: ${1:-} (n1..n$NODES)"; I=${BASH_REMATCH[1]} N=$STATE/$1; }
holder() { # init of a node: own hostname, /run, /var/lib, /var/log, sysctls and boot id
  local n=$1
  guard_holder
  hostname "$n"
  mount -t tmpfs -o mode=755 run /run; mount -t tmpfs -o mode=755 lib /var/lib; mount -t tmpfs -o mode=755 log /var/log
  mkdir -p /run/lock /var/lib/kubelet /var/log/pods
  mount --bind "$STATE/$n/kubelet" /var/lib/kubelet # the device plugin directory is fixed at this path
  mount --bind "$STATE/$n/pods" /var/log/pods
  mask_sysctls
  cat /proc/sys/kernel/random/uuid >/run/boot_id; mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
  touch "/run/holder-$n"
  while :; do sleep 3600 & wait $! || true; done
}
guard_holder() { # namespaces of its own: not the machine's, not the control plane's
  local f a b
  mapfile -t a < <(ns_of self)
  for f in host.ns inner.ns; do mapfile -t b <"$STATE/$f"; [ $$ = 1 ] && [ ${#b[@]} = 3 ] && [ "${a[0]}" != "${b[0]}" ] && [ "${a[1]}" != "${b[1]}" ] && [ "${a[2]}" != "${b[2]}" ] || die "refuse: not in a node's namespaces"; done
}
node_up() ( # NODE ; a subshell, so that variables and set -e are its own
  n=$1; node_arg "$n"; guard_inside
  quiet holder_of "$n" && return
  ip=$NET.$((100 + I)) ctrd=unix:///run/containerd/containerd.sock
  mkdir -p "$N"/{kubelet,pods,containerd,opt,plugins,tmp,net.d}; : >"$N/resolv.conf"
  setsid unshare --net --mount --pid --ipc --uts --propagation private --fork --kill-child=KILL --mount-proc bash "$PROG" __holder "$STATE" "$n" >"$STATE/log/$n-holder.log" 2>&1 </dev/null 9>&- & u=$!
  end=$((SECONDS + 20))
  until h=$(pgrep -P $u) && [ -e "/proc/$h/root/run/holder-$n" ]; do [ $SECONDS -lt $end ] && ! gone $u || die "$n: no namespaces, see $STATE/log/$n-holder.log"; sleep 0.05; done
  echo "$h" >"$N/holder"
  nx=(nsenter -t "$h" -n -m -p -i -u --)
  # The peer is never called eth0 on this side: `ip link add .. peer name eth0` fails where an eth0 exists, and a following
  # `ip link set eth0 netns ..` would then move the wrong one away. Moved first, renamed inside.
  quiet ip link del "vn$I" || true
  ip link add "vn$I" type veth peer name "vp$I"
  ip link set "vp$I" netns "$h"
  ip link set "vn$I" master br0 up
  { echo "link set lo up"; echo "link set vp$I name eth0"; echo "addr add $ip/24 dev eth0"; echo "link set eth0 up"; echo "route add default via $NET.1"
    for ((j = 1; j <= NODES; j++)); do [ $j = "$I" ] || echo "route add 10.244.$j.0/24 via $NET.$((100 + j))"; done; } | "${nx[@]}" ip -batch -
  "${nx[@]}" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
  ip route replace "10.244.$I.0/24" via "$ip"
  cg_make "$CG/$n"
  cat >"$N/net.d/10-bridge.conflist" <<Y
{"cniVersion":"1.0.0","name":"$n","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true,
 "ipam":{"type":"host-local","ranges":[[{"subnet":"10.244.$I.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}],"dataDir":"/run/cni-ipam"}},{"type":"loopback"}]}
Y
  cat >"$N/containerd.toml" <<Y
version = 3
root = "$N/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins.'io.containerd.internal.v1.opt']
  path = "$N/opt"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "localhost/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["$CACHE/cni"]
  conf_dir = "$N/net.d"
Y
  cat >"$N/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
containerRuntimeEndpoint: $ctrd
cgroupDriver: cgroupfs
cgroupRoot: /$CG/$n
enforceNodeAllocatable: [pods]
address: $ip
readOnlyPort: 0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failSwapOn: false
makeIPTablesUtilChains: false
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%, imagefs.inodesFree: 1%}
imageMinimumGCAge: 24h
volumePluginDir: $N/plugins
resolvConf: $N/resolv.conf
clusterDomain: cluster.local
clusterDNS: [$NET.1]
nodeStatusUpdateFrequency: 2s
nodeLeaseDurationSeconds: 8
syncFrequency: 5s
Y
  export TMPDIR=$N/tmp HOME=$N/tmp
  spawn "$n-containerd" "${nx[@]}" containerd -c "$N/containerd.toml"
  await 20 "$n: containerd" "${nx[@]}" ctr version
  for t in "$CACHE/pause.tar" "$STATE"/images/*.tar; do [ ! -f "$t" ] || import "$t"; done
  spawn "$n-kubelet" "${nx[@]}" kubelet --config="$N/kubelet.yaml" --kubeconfig="$STATE/$n.kubeconfig" --hostname-override="$n" --node-ip="$ip" --node-labels="topology.kubernetes.io/zone=z$I" --v=1
  spawn "$n-kube-proxy" "${nx[@]}" kube-proxy --kubeconfig="$STATE/proxy.kubeconfig" --hostname-override="$n" --proxy-mode=iptables --masquerade-all --healthz-bind-address=127.0.0.1:10256 \
    --conntrack-max-per-core=0 --conntrack-min=0 --conntrack-tcp-timeout-established=0s --conntrack-tcp-timeout-close-wait=0s
)
import() { quiet "${nx[@]}" ctr -n k8s.io images import --local - <"$1" || { echo "import of $1 failed" >&2; return 1; }; }
in_nodes() { # CMD of this script run in the outer namespaces
  local c=$1 h p; shift
  guard_inside
  case $c in
  crash)
    node_arg "$1"; h=$(holder_of "$1") || die "$1 is not running"
    kill -KILL "$h"; await 10 "end of $1" gone "$h"
    rm -f "$N/holder" "$STATE"/pids/"$1"-*; quiet ip link del "vn$I" || true; ip route del "10.244.$I.0/24" || true; cg_remove "$CG/$1" ;;
  start) node_up "$1" ;;
  exec) node_arg "$1"; h=$(holder_of "$1") || die "$1 is not running"; shift; exec nsenter -t "$h" -n -m -p -i -u --wd="$PWD" -- setpriv --pdeathsig KILL "$@" ;;
  run) export KUBECONFIG=$STATE/admin.kubeconfig KUBECACHEDIR=$STATE/kubecache; exec "$@" ;;
  load) # reads the image on stdin
    p=$STATE/images/$1; cat >"$p"
    for ((i = 1; i <= NODES; i++)); do if h=$(holder_of n$i); then nx=(nsenter -t "$h" -n -m -p -i -u --); import "$p"; echo "n$i: loaded $1"; fi; done ;;
  status)
    for p in "$STATE"/pids/*; do h=$(<"$p"); c=$(pgrep -P "$h" || echo "$h"); [ ! -e "/proc/${c%%$'\n'*}" ] || awk -v n="${p##*/}" '/VmRSS/ {printf "%-26s %4.0f MiB\n", n, $2/1024}' "/proc/${c%%$'\n'*}/status"; done ;;
  esac
}

# ---- commands ----
: "${NODE_GRACE:=12s}" "${EVICT_AFTER:=10}" # seconds until a silent node is not ready (Kubernetes: 50), and until its pods are evicted (300)
c=${1:-}; [ $# = 0 ] || shift
case $c in
lacks)
  [ $# = 1 ] || usage
  CACHE=$(readlink -m "$1"); (preflight) 2>&1 | sed "s/^nodes.sh: //" || true ;;
up) cmd_up "$@" ;;
down) cmd_down "$@" ;;
__supervise) set_state "$1"; load_env; supervise ;;
__inner) set_state "$1"; load_env; inner ;;
__holder) set_state "$1"; load_env; holder "$2" ;;
__in) set_state "$1"; load_env; shift; in_nodes "$@" ;;
status | exec | run | kubectl | crash | start | load)
  set_state "${SKEIN_NODES:-}"; load_env
  [ $c = status ] || [ $# -ge 1 ] || usage
  case $c in
  exec) [ $# -ge 2 ] || usage ;;
  kubectl) c=run; set -- kubectl "$@" ;;
  load)
    for t in "$@"; do [ -f "$t" ] || die "no such file: $t"; (enter bash "$PROG" __in "$STATE" load "$(basename "${t%.tar}").tar" <"$t"); done
    exit 0 ;;
  esac
  enter bash "$PROG" __in "$STATE" $c "$@" ;;
*) usage ;;
esac
