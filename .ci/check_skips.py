"""Fail when a test was skipped that may not be: `check_skips.py RESULTS.xml ALLOWED.txt`.

Each line of ALLOWED is `test id | reason`; in both, `*` stands for anything and brackets for themselves.
RESULTS is pytest's junit file in the xunit1 family, which names each test's file.
"""

import fnmatch
import sys
from pathlib import Path
from xml.etree import ElementTree as ET


def read_allowed(path: str) -> list[tuple[str, str]]:
    """Return the (test id, reason) patterns of the allow-list."""
    allowed = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        test, separator, reason = line.partition(" | ")
        if not separator or not reason.strip():
            raise SystemExit(f"{path}:{number}: expected 'test id | reason', got {line!r}")
        allowed.append((test.strip(), reason.strip()))
    return allowed


def read_skips(path: str) -> tuple[int, list[tuple[str, str]]]:
    """Return the number of tests, and the (test id, reason) of each one skipped or expected to fail."""
    cases = list(ET.parse(path).getroot().iter("testcase"))
    skips = []
    for case in cases:
        for skipped in case.iter("skipped"):
            file = case.get("file", "")
            module = file.removesuffix(".py").replace("/", ".")
            scope = (case.get("classname") or "").removeprefix(module).strip(".").replace(".", "::")
            test = "::".join(part for part in (file, scope, case.get("name") or "") if part)
            reason = skipped.get("message") or ""
            if (
                reason == "collection skipped"
            ):  # a whole file: the reason stands in the text, as a tuple's last item
                reason = (skipped.text or "").strip().rstrip("')\"").rpartition("Skipped: ")[2]
            skips.append((test, reason.removeprefix("Skipped: ")))
    return len(cases), skips


def matches(text: str, pattern: str) -> bool:
    """Match with `*` as the only wildcard, so that brackets (parametrised tests) are literal."""
    return fnmatch.fnmatchcase(text, pattern.replace("[", "[[]").replace("?", "[?]"))


def main(results: str, allow_list: str) -> int:
    """Print the skips that are not allowed and return the exit status."""
    allowed = read_allowed(allow_list)
    n_tests, skips = read_skips(results)
    if n_tests == 0:
        print(f"{results}: no test ran")
        return 1
    refused = [
        (test, reason)
        for test, reason in skips
        if not any(matches(test, allowed_test) and matches(reason, why) for allowed_test, why in allowed)
    ]
    for test, reason in refused:
        print(f"skip not in {allow_list}: {test} | {reason}")
    print(f"{n_tests} tests, {len(skips)} skipped, {len(refused)} of them without leave")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
