#!/usr/bin/env bash
# Runs all tests: unit tests beside the code (ctest), whole-system tests in tests/ (pytest). The last line is "N passed, N failed".
# usage: scripts/test.sh [unit|system|all] [PRESET]
set -uo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
what=${1:-all}
preset=${2:-release}
passed=0 failed=0
cd "$root" || exit 1

# What a runner's report says is what counts; a runner that dies without one is a failure of its own.
count() { # RUNNER JUNIT-FILE EXIT-CODE
  local numbers
  numbers=$(python3 - "$1" "$2" <<'PY'
import sys, xml.etree.ElementTree as tree
try:
    root = tree.parse(sys.argv[2]).getroot()
except (OSError, tree.ParseError):
    sys.exit(1)
cases = root.findall(".//testcase")
bad = sum(1 for c in cases if c.find("failure") is not None or c.find("error") is not None)
skipped = [c.get("name") for c in cases if c.find("skipped") is not None]
for name in skipped:
    print(f"skipped: {name}", file=sys.stderr)
for case in cases if sys.argv[1] == "unit tests" else []:  # pytest reports its own
    if case.find("failure") is not None or case.find("error") is not None:
        print(f"failed: {case.get('name')}\n{(case.findtext('system-out') or '')[-8000:]}", file=sys.stderr)
print(len(cases) - bad - len(skipped), bad + len(skipped))
PY
  ) || numbers="0 1"
  read -r ok bad <<<"$numbers"
  # A skipped test counts as failed: `make test` installs all that the tests need.
  [[ $3 -ne 0 && $bad -eq 0 ]] && bad=1
  echo "$1: $ok passed, $bad failed"
  passed=$((passed + ok)) failed=$((failed + bad))
}

out=$root/build/test-results
mkdir -p "$out"
export STRATA_BUILD=$root/build/$preset
if [[ $what == unit || $what == all ]]; then
  step "unit tests"
  rm -f "$out/unit.xml"
  ctest --test-dir "build/$preset" --output-on-failure --output-junit "$out/unit.xml" -j 2 --timeout 300 --quiet
  count "unit tests" "$out/unit.xml" $?
fi
if [[ $what == system || $what == all ]]; then
  step "whole-system tests"
  rm -f "$out/system.xml"
  "$(scripts/venv.sh)/bin/python" -m pytest -q --timeout 300 --junit-xml "$out/system.xml" tests
  count "whole-system tests" "$out/system.xml" $?
fi
echo
echo "$passed passed, $failed failed"
[[ $failed -eq 0 && $passed -gt 0 ]]
