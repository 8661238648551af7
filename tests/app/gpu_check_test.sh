#!/bin/bash
# scripts/gpu_check.sh as far as it goes without a GPU: wrong arguments, packing, a machine without a
# GPU, and, with programs and an nvidia-smi that are made up, its table and exit status.
# Usage: gpu_check_test.sh SOURCE_DIR
set -u
source_dir=$1
script=$source_dir/scripts/gpu_check.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
unset OUT

fail() {
  echo "FAILED: $*"
  sed 's/^/  stdout: /' "$work/out" | tail -5
  sed 's/^/  stderr: /' "$work/err" | head -5
  failures=$((failures + 1))
}
# expect CODE COMMAND…: runs it; its output is then in out and err.
expect() {
  local code=$1 status
  shift
  command_line="$*"
  "$@" >"$work/out" 2>"$work/err" </dev/null
  status=$?
  [ $status -eq "$code" ] || fail "$command_line: exit code $status, not $code"
}
error_is() {
  case $(head -1 "$work/err") in
    "gpu_check: error: $1"*) ;;
    *) fail "$command_line: expected the error '$1…'" ;;
  esac
  sed -n 2p "$work/err" | grep -q '^hint: .' || fail "$command_line: no hint"
  [ "$(wc -l <"$work/err")" -eq 2 ] || fail "$command_line: more than an error and a hint"
}
out_has() { grep -qE -- "$1" "$work/out" || fail "$command_line: '$1' is not in its output"; }

# Programs: chaski fails where $work/broken names one of its benchmarks.
fakes=$work/fakes build=$work/build
mkdir -p "$fakes" "$build/tests/parity"
cat >"$build/chaski" <<END
#!/bin/bash
if [ "\$1" = --version ]; then echo "chaski 0.1"; echo "CUDA: cuBLAS 13"; exit 0; fi
if [ "\$2" = "\$(cat "$work/broken" 2>/dev/null)" ]; then
  echo "chaski: error: it is broken" >&2
  echo "hint: mend it" >&2
  exit 2
fi
loss=2
[[ \$* != *device.graphs=false* ]] || loss=\$(cat "$work/loss" 2>/dev/null || echo 2)
for word in "\$@"; do
  [[ \$word != run.output=* ]] || { mkdir -p "\${word#*=}" && echo "{\"step\":1,\"loss\":\$loss,\"lr\":1}" >"\${word#*=}/metrics.jsonl"; }
done
echo "1 tokens/s of a whole step"
END
printf '#!/bin/bash\necho "[  PASSED  ] 7 tests."\n' >"$build/tests/kernels_test"
cp "$build/tests/kernels_test" "$build/tests/parity/parity_test"
printf '#!/bin/bash\n[ "$1" = -o ] || exit 0\ncp "$3" "$2"\n' >"$fakes/strip"
cat >"$fakes/ldd" <<END
#!/bin/bash
echo "	linux-vdso.so.1 (0x0000)"
echo "	libcudart.so.13 => not found"
echo "	libc.so.6 => $work/libc.so.6 (0x0000)"
echo "	libresolv.so.2 => $work/libresolv.so.2 (0x0000)"
echo "	libown.so.1 => $work/libown.so.1 (0x0000)"
[ ! -e "$work/lost" ] || echo "	liblost.so.1 => not found"
END
echo own >"$work/libown.so.1"
chmod +x "$build/chaski" "$build/tests/kernels_test" "$build/tests/parity/parity_test" "$fakes"/*
export PATH=$fakes:$PATH

expect 0 "$script" --help
out_has "^Checks a build on a machine with a GPU"
out_has "Exit status: 0 all passed"
for option in --pack --build --seconds --out; do
  for next in "" --quick; do
    # shellcheck disable=SC2086
    expect 2 "$script" $option $next
    error_is "$option needs a "
  done
done
expect 2 "$script" --pack
error_is "--pack needs a FOLDER"
expect 2 "$script" --pack --build "$build"
error_is "--pack needs a FOLDER"
expect 2 "$script" --quik
error_is "unknown argument --quik"
for seconds in 0 -5 many 1.5 012; do
  expect 2 "$script" --seconds $seconds
  error_is "--seconds "
done
expect 2 "$script" --build "$work/nowhere"
error_is "--build names $work/nowhere, which is no folder"
expect 2 "$script" --pack "$work/pack" --build "$build" --quick
error_is "--quick has no meaning with --pack"

# Nothing is packed where a program, or what it loads, is missing.
mv "$build/tests/parity/parity_test" "$work/"
expect 2 "$script" --pack "$work/pack" --build "$build"
error_is "$build/tests/parity/parity_test is missing"
[ ! -e "$work/pack" ] && [ ! -e "$work/pack.tar.xz" ] || fail "something was packed all the same"
mv "$work/parity_test" "$build/tests/parity/"
touch "$work/lost"
expect 1 "$script" --pack "$work/pack" --build "$build"
error_is "$build/chaski loads liblost.so.1, which is not found"
[ ! -e "$work/pack.tar.xz" ] || fail "a folder without a library was packed"
rm -r "$work/lost" "$work/pack"

expect 0 "$script" --pack "$work/pack/" --build "$build"
out_has "^packed $work/pack: .*; $work/pack.tar.xz: "
[ ! -s "$work/err" ] || fail "packing warns"
expect 2 "$script" --pack "$work/pack" --build "$build"
error_is "$work/pack is there already"
mkdir "$work/there" && tar -C "$work/there" -xf "$work/pack.tar.xz"
packed=$work/there/pack
[ "$(ls "$packed")" = "$(printf 'bin\ngolden\ngpu_check.sh\nlib\nloss_curves.py\npytorch_baseline.py\ntext.txt')" ] || fail "the folder holds $(ls "$packed")"
[ "$(ls "$packed/bin")" = "$(printf 'chaski\nkernels_test\nparity_test')" ] || fail "bin holds $(ls "$packed/bin")"
[ "$(ls "$packed/lib")" = libown.so.1 ] || fail "lib holds $(ls "$packed/lib")"
rm -r "$work/pack"

for option in --pack --build; do
  expect 2 "$packed/gpu_check.sh" $option "$work/other"
  error_is "$option is for where the build was made"
done
mv "$packed/bin/kernels_test" "$work/"
expect 2 "$packed/gpu_check.sh"
error_is "there is no $packed/bin/kernels_test"
mv "$work/kernels_test" "$packed/bin/"

# Without a GPU: no nvidia-smi; one that finds no driver; one that finds nothing and says so with 0.
mkdir "$work/plain"
for tool in bash dirname basename sed head mktemp cat; do ln -s "$(command -v $tool)" "$work/plain/$tool"; done
expect 3 env PATH="$work/plain" "$packed/gpu_check.sh"
error_is "there is no GPU here: no nvidia-smi is found"
for status in 9 0; do
  printf '#!/bin/bash\necho "No devices were found"\nexit %s\n' $status >"$fakes/nvidia-smi"
  chmod +x "$fakes/nvidia-smi"
  expect 3 "$packed/gpu_check.sh"
  error_is "there is no GPU here: nvidia-smi says: No devices were found"
done

printf '#!/bin/bash\necho "A GPU, 580.1, 100 MiB"\n' >"$fakes/nvidia-smi"
printf '#!/bin/bash\n[ "$1" != -c ]\n' >"$fakes/python3" && chmod +x "$fakes/python3"
echo gemm >"$work/broken"
expect 3 "$packed/gpu_check.sh"
error_is "the programs cannot use the GPU: it is broken"
rm "$work/broken"
expect 0 "$packed/gpu_check.sh" --quick --out "$work/results"
out_has "^ops, bf16 +passed .* PASSED .* 7 tests"
out_has "^training llama-1b, bf16 +passed"
out_has "^PyTorch +not run: python3 has no torch"
out_has "^graphs change no loss +passed"
out_has "^the GPU's checkpoint on the CPU +passed"
out_has "^all passed, but for 1 that could not be run"
out_has "^kept in $work/results"
[ "$(wc -l <"$work/results/benchmarks.jsonl")" -eq 2 ] || fail "benchmarks.jsonl does not hold two objects"
[ -s "$work/results/gpu_check.log" ] && [ -s "$work/results/benchmarks.jsonl" ] || fail "nothing was kept"
echo decode >"$work/broken"
expect 1 "$packed/gpu_check.sh" --quick --out "$work/results"
out_has "^decoding with llama-350m, fp32 +FAILED \(2\)"
out_has "^something FAILED"
rm "$work/broken"
# Another loss without graphs than with them.
echo 3 >"$work/loss"
expect 1 "$packed/gpu_check.sh" --quick --out "$work/results"
out_has "^graphs change no loss +FAILED \(1\)"
rm "$work/loss"
# Tests of which none ran have not passed.
cp "$packed/bin/kernels_test" "$work/"
printf '#!/bin/bash\necho "[  PASSED  ] 0 tests."\n' >"$packed/bin/kernels_test"
expect 1 "$packed/gpu_check.sh" --quick --out "$work/results"
out_has "^ops, bf16 +FAILED \(none ran\)"
out_has "^something FAILED"
mv "$work/kernels_test" "$packed/bin/"
expect 1 "$packed/gpu_check.sh" --quick --seconds 4 --out "$work/results"
out_has "^ops, bf16 +not run: the time is up"

[ $failures -eq 0 ] && echo "all passed"
exit $((failures > 0))
