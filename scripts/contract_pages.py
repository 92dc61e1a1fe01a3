"""Makes docs/contracts: a page for each contract, from source and table of roles. `--check` names stale ones."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from maxgreen.chain.roles import ADMIN, NAMES, RIGHTS, Right

ROOT: Final = Path(__file__).parent.parent
SOURCES: Final = ROOT / "contracts/src"
PAGES: Final = ROOT / "docs/contracts"
_HEAD: Final = "<!-- made by scripts/contract_pages.py from the source -->\n"
_DOC: Final = r"(?P<doc>(?:^ *///.*\n)*)"
_KINDS: Final = "contract|library|interface|struct|enum|function|event|error|constructor"
_DECLARED: Final = re.compile(
    rf"{_DOC}^ *(?:abstract )?(?P<kind>{_KINDS})\b(?P<rest>[^{{;]*)(?P<end>[{{;])", re.MULTILINE
)
_VALUE: Final = re.compile(
    rf"{_DOC}^    (?P<type>[\w.]+(?:\([^)]*\))?(?: [^;=]*?)?) public (?:[\w ]*?)(?P<name>\w+)(?: = [^;]*)?;"
    r"(?: // (?P<note>.*))?$",
    re.MULTILINE,
)


@dataclass
class Part:
    """Something that a source declares: what is said of it, its head, its body."""

    kind: str
    name: str
    head: str
    doc: str
    body: str = ""
    parts: "list[Part]" = field(default_factory=list)

    def of(self, kind: str) -> "list[Part]":
        """Return the parts of a kind."""
        return [part for part in self.parts if part.kind == kind]


def read(text: str) -> list[Part]:
    """Return what a source declares at its top; contracts with their members."""
    found = []
    position = 0
    while match := _DECLARED.search(text, position):
        head = " ".join(match["rest"].split())
        doc = " ".join(line.strip().removeprefix("///").strip() for line in match["doc"].splitlines())
        name = re.match(r"\w*", head)
        part = Part(match["kind"], name[0] if name else "", head, doc)
        position = match.end()
        if match["end"] == "{":
            position = _closing(text, match.end())
            part.body = text[match.end() : position - 1]
            if part.kind in {"contract", "library"}:
                part.parts = read(part.body)
        found.append(part)
    return found


def _closing(text: str, position: int) -> int:
    depth = 1
    while depth:
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        position += 1
    return position


def errors_of(function: Part, contract: Part) -> list[str]:
    """Return the errors that a function, and what it calls in its own contract, ends with."""
    bodies = {part.name: part.body + part.head for part in contract.of("function")}
    seen, waiting, found = set(), [function.name], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        body = bodies.get(name, "")
        found |= set(re.findall(r"revert (\w+)\(", body))
        found |= {"NotWriter"} if "onlyWriter" in body else set()
        waiting += [called for called in re.findall(r"(?<![.\w])(\w+)\(", body) if called in bodies]
    return sorted(found)


def who(contract: str, function: Part, heirs: Mapping[str, str]) -> str:
    """Return who may call a function; `heirs`: what each contract inherits from."""
    head = function.head.split("returns")[0]
    if "onlyWriter" in head:
        return "its writer"
    if "restricted" not in head and "onlyAuthorized" not in head:
        return "the guardian" if "revert NotGuardian" in function.body else "anyone"
    named = {contract, *(name for name, bases in heirs.items() if contract in bases)}
    administrator = Right(ADMIN, contract, ())
    right = next((r for r in RIGHTS if r.contract in named and function.name in r.functions), administrator)
    return NAMES[right.role] + (", stoppable" if right.stoppable else "")


def page(contract: Part, file: str, types: list[Part], heirs: Mapping[str, str]) -> str:
    """Return the page of a contract."""
    bases = contract.head.partition(" is ")[2]
    lines = [f"# {contract.name}", "", contract.doc or "", ""]
    lines += [f"Source: `contracts/src/{file}`." + (f" It is {_listed(bases)}." if bases else "")]
    outside = [part for part in contract.of("function") if re.search(r"\b(external|public)\b", part.head)]
    acts = [part for part in outside if not re.search(r"\b(view|pure)\b", part.head)]
    if acts:
        lines += [
            "",
            "## What can be done",
            "",
            "| function | who | what it does | ends with |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| `{part.name}({_arguments(part)})` | {who(contract.name, part, heirs)} | {_cell(part.doc)} | "
            f"{', '.join(f'`{error}`' for error in errors_of(part, contract))} |"
            for part in acts
        ]
    values = list(_VALUE.finditer(contract.body))
    asks = [part for part in outside if part not in acts]
    if asks or values:
        lines += ["", "## What can be asked", ""]
        lines += [f"* `{part.name}({_arguments(part)})`{_after(part.doc)}" for part in asks]
        lines += [f"* `{value['name']}`: {value['type']}{_after(_said(value))}" for value in values]
    events = contract.of("event")
    if events:
        lines += ["", "## Events", ""]
        lines += [f"* `{part.head}`{_after(part.doc)}" for part in events]
    raised = {error for part in contract.of("function") for error in errors_of(part, contract)}
    errors = [part for part in contract.of("error") if part.name in raised]
    if errors:
        lines += ["", "## Errors", ""]
        lines += [f"* `{part.head}`{_after(part.doc)}" for part in errors]
    if types:
        lines += ["", "## Types", ""]
        for part in types:
            lines += [f"`{part.kind} {part.name}`{_after(part.doc)}", "", "```solidity", _body(part.body), "```", ""]
    return _HEAD + "\n".join(lines).rstrip() + "\n"


def _said(value: "re.Match[str]") -> str:
    doc = " ".join(line.strip().removeprefix("///").strip() for line in value["doc"].splitlines())
    return doc or value["note"] or ""


def _body(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def _listed(bases: str) -> str:
    return ", ".join(f"`{base.strip()}`" for base in bases.split(","))


def _arguments(part: Part) -> str:
    inside = part.head.partition("(")[2].partition(")")[0]
    return ", ".join(
        argument.split()[-1] if " " in argument.strip() else argument.strip()
        for argument in inside.split(",")
        if argument.strip()
    )


def _after(doc: str) -> str:
    return f": {doc}" if doc else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def pages() -> dict[str, str]:
    """Return every page by its file's name."""
    found, index = {}, []
    sources = {path: read(path.read_text()) for path in sorted(SOURCES.glob("*.sol"))}
    heirs = {part.name: part.head.partition(" is ")[2] for parts in sources.values() for part in parts}
    for path, parts in sources.items():
        types = [part for part in parts if part.kind in {"struct", "enum"}]
        for part in parts:
            if part.kind not in {"contract", "library"}:
                continue
            found[f"{part.name}.md"] = page(part, path.name, types, heirs)
            types = []  # with the first of a file
            index.append(f"* [{part.name}]({part.name}.md){_after(part.doc.partition('. ')[0].rstrip('.'))}")
    said = "What OpenZeppelin's contracts do is in their documentation; here is what is added to them.\n"
    found["README.md"] = _HEAD + "# The contracts, one by one\n\n" + said + "\n" + "\n".join(index) + "\n"
    return found


def main() -> None:
    """Write the pages, or compare them."""
    made = pages()
    if "--check" in sys.argv:
        kept = {path.name: path.read_text() for path in PAGES.glob("*.md")}
        stale = sorted(name for name in made.keys() | kept.keys() if made.get(name) != kept.get(name))
        if stale:
            sys.exit(f"stale: {', '.join(f'docs/contracts/{name}' for name in stale)}; run: make contracts")
        return
    PAGES.mkdir(exist_ok=True)
    for path in PAGES.glob("*.md"):
        path.unlink()
    for name, text in made.items():
        (PAGES / name).write_text(text)


if __name__ == "__main__":
    main()
