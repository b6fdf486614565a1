"""Fail unless the changelog has an "Unreleased" section with an entry: `check_changelog.py CHANGELOG.md`."""

import re
import sys
from pathlib import Path


def main(path: str) -> int:
    """Return the exit status for the changelog at `path`."""
    text = Path(path).read_text(encoding="utf-8")
    section = re.search(r"^## \[?Unreleased\]?[^\n]*\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if section is None:
        print(f"{path}: no '## Unreleased' section")
        return 1
    entries = re.findall(r"^- \S", section.group(1), re.MULTILINE)
    if not entries:
        print(f"{path}: the Unreleased section has no entry ('- ...'); say what this change does for a user")
        return 1
    print(f"{path}: {len(entries)} unreleased entries")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
