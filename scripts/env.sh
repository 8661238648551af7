# To be sourced (". scripts/env.sh") by bash, zsh or sh from any folder: puts chaski, and the mpirun
# that it was built with, on the PATH. Sourcing it again changes nothing.
# shellcheck shell=sh

# This file's own path. A plain sh has no variable for it, but has the file open while it reads it.
if [ -n "${BASH_VERSION:-}" ]; then
  # shellcheck disable=SC3028,SC3054
  chaski_env_file=${BASH_SOURCE[0]}
elif [ -n "${ZSH_VERSION:-}" ]; then
  eval 'chaski_env_file=${(%):-%x}'
else
  chaski_env_file=./scripts/env.sh
  for chaski_env_entry in "/proc/$$/fd/"*; do
    case $(readlink "$chaski_env_entry") in
      */scripts/env.sh) chaski_env_file=$(readlink "$chaski_env_entry") ;;
    esac
  done
fi
chaski_env_root=$(cd "$(dirname "$chaski_env_file")/.." && pwd)

# In a container one is root, which Open MPI refuses unless told twice; and it does not start without HOME.
if [ "$(id -u)" -eq 0 ]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
if [ -z "${HOME:-}" ]; then
  export HOME="${TMPDIR:-/tmp}"
fi

chaski_env_prepend() {
  case ":$PATH:" in
    *":$1:"*) ;;
    *) PATH=$1:$PATH ;;
  esac
}

if [ -d "$chaski_env_root/.deps/cmake/bin" ]; then chaski_env_prepend "$chaski_env_root/.deps/cmake/bin"; fi
if [ -d "$chaski_env_root/.deps/openmpi/bin" ]; then
  chaski_env_prepend "$chaski_env_root/.deps/openmpi/bin"
  # mpirun finds its own files; a chaski started without mpirun needs to be told.
  export OPAL_PREFIX="$chaski_env_root/.deps/openmpi"
else
  if [ "${OPAL_PREFIX:-}" = "$chaski_env_root/.deps/openmpi" ]; then unset OPAL_PREFIX; fi
  # What the one in .deps/ has in its configuration files, for the system's Open MPI.
  case $(mpirun --version 2>/dev/null) in
    *"(Open MPI) 4"*)
      export OMPI_MCA_rmaps_base_oversubscribe="${OMPI_MCA_rmaps_base_oversubscribe:-1}"
      export OMPI_MCA_hwloc_base_binding_policy="${OMPI_MCA_hwloc_base_binding_policy:-none}"
      ;;
    *"(Open MPI)"*)
      export PRTE_MCA_rmaps_default_mapping_policy="${PRTE_MCA_rmaps_default_mapping_policy:-:oversubscribe}"
      export PRTE_MCA_hwloc_default_binding_policy="${PRTE_MCA_hwloc_default_binding_policy:-none}"
      export OMPI_MCA_pml="${OMPI_MCA_pml:-ob1}"
      export OMPI_MCA_btl="${OMPI_MCA_btl:-self,sm,tcp}"
      export OMPI_MCA_btl_tcp_flags="${OMPI_MCA_btl_tcp_flags:-send}"
      ;;
  esac
fi
# An mpirun that lets a run save on Ctrl-C; it calls the one that comes next on the PATH.
chaski_env_prepend "$chaski_env_root/scripts/bin"
chaski_env_prepend "$chaski_env_root/build/release"
export PATH

unset -f chaski_env_prepend
unset chaski_env_file chaski_env_entry chaski_env_root
