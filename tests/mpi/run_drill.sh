#!/bin/sh
# Runs a drill in which process VICTIM of NUMBER is killed, and checks that exactly the others finished,
# each having noticed that process's death. At the moment "error" it is not killed, and all end: it by its
# error, the others because of it.
#   run_drill.sh NUMBER VICTIM MOMENT PROGRAM MPIRUN…
set -u
number=$1 victim=$2 moment=$3 program=$4
shift 4
directory=$(mktemp -d) || exit 1
trap 'rm -rf "$directory"' EXIT

# mpirun reports the victim, whatever the others achieve.
timeout 100 "$@" -n "$number" "$program" "$directory" "$victim" "$moment"
echo "mpirun: exit status $?"

expected="ok failures=1 dead=$victim version=1 live=$((number - 1))"
[ "$moment" != error ] || expected="failed: another process cannot go on"
result=0
rank=0
while [ "$rank" -lt "$number" ]; do
  file=$directory/done.$rank
  if [ "$rank" -eq "$victim" ] && [ "$moment" = error ]; then
    read -r line <"$file"
    echo "process $rank: $line"
    [ "$line" = "failed: std::bad_alloc" ] || result=1
  elif [ "$rank" -eq "$victim" ]; then
    [ ! -e "$file" ] || { echo "process $rank was to die"; result=1; }
  elif ! [ -e "$file" ]; then
    echo "process $rank did not finish"
    result=1
  else
    read -r line <"$file"
    echo "process $rank: $line"
    [ "$line" = "$expected" ] || result=1
  fi
  rank=$((rank + 1))
done
exit $result
