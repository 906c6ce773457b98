"""Looks for known vulnerabilities in what requirements.txt pins.

Status 1 where there is one. Where no service of vulnerabilities answers there
is nothing to find; that is said and no failure.
"""

import json
import pathlib
import subprocess
import sys

_COMMAND = (
  *(sys.executable, "-m", "pip_audit", "--requirement=requirements.txt"),
  *("--no-deps", "--disable-pip", "--format=json", "--progress-spinner=off"),
)


def verdict(report: str) -> tuple[int, str]:
  """Exit status and text for what pip-audit printed, or did not."""
  try:
    found = json.loads(report)["dependencies"]
  except ValueError:
    return 0, "audit: no service of vulnerabilities answers; nothing looked at"
  skipped = sum("skip_reason" in x for x in found)
  lines = [
    f"audit: {x['name']} {x['version']} has {v['id']}, fixed in "
    f"{' or '.join(v['fix_versions']) or 'no version'}"
    for x in found
    for v in x.get("vulns", [])
  ]
  looked = f"audit: {len(found) - skipped} of {len(found)} packages looked up"
  return bool(lines), "\n".join([*lines, looked])


def main() -> int:
  root = pathlib.Path(__file__).parents[1]
  try:
    ran = subprocess.run(
      _COMMAND, cwd=root, capture_output=True, text=True, timeout=120
    )
  except subprocess.TimeoutExpired:
    report = ""
  else:
    report = ran.stdout
  status, text = verdict(report)
  print(text)
  return status


if __name__ == "__main__":
  sys.exit(main())
