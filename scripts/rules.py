"""Lists the rules of docs/protocol.md that no test names; a test that names an unknown rule is an error."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RULE = re.compile(r"P-[A-Z]+-\d+")


def main() -> int:
    """Compare the ids of the text with the markers of the tests."""
    known = set(RULE.findall((ROOT / "docs/protocol.md").read_text()))
    shown: set[str] = set()
    for path in (ROOT / "tests").rglob("*.py"):
        for marker in re.findall(r"mark\.rule\(([^)]*)\)", path.read_text()):
            shown |= set(RULE.findall(marker))
    for rule in sorted(known - shown):
        print(f"no test names {rule}")
    for rule in sorted(shown - known):
        print(f"unknown rule {rule}")
    print(f"{len(known & shown)} of {len(known)} rules have a test that names them")
    return 1 if shown - known else 0


if __name__ == "__main__":
    sys.exit(main())
