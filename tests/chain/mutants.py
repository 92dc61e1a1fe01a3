"""How many mutants of the contracts the tests kill: `make mutants`, or `python -m tests.chain.mutants [FILE…]`.

A mutant is the contracts with one guard gone, one comparison or operator another one (contracts/mutants.mjs). It is
killed when a test fails. One process compiles, the others each run the tests on one mutant after the other, first those
that name the guard's error.
"""

import argparse
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from maxgreen.chain import artifacts
from maxgreen.chain.client import connect
from maxgreen.errors import MaxgreenError
from tests.chain import world
from tests.conftest import running_anvil

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = ROOT / "contracts" / "mutants.mjs"
EDGES, SECONDS, CONTRACTS, MARKET, ROLES = (
    ROOT / "tests" / "chain" / f"test_{name}.py" for name in ("edges", "seconds", "contracts", "market", "roles")
)
SUITES = (CONTRACTS, SECONDS, EDGES, ROLES, MARKET)
OF_THE_MARKET = {"EnergyExchange.sol", "EnergyPool.sol", "Coins.sol", "Rewards.sol"}  # what no other suite touches
# mutants that do the same, by file, operator and a part of the source line: why
ARGUED = {
    (
        "EnergyExchange.sol",
        ">=",
        "energy >= most ? most",
    ): "with as much energy as was asked for both branches are alike",
    ("EnergySettlement.sol", ">", "payableTotal > line.paid ?"): "where nothing is new, nothing is added either way",
    ("EnergySettlement.sol", ">", "room > paidNinths ?"): "where no ninth fits, nothing does either way",
    (
        "EnergySettlement.sol",
        ">",
        "opening.time > line.closedAt",
    ): "a closing and a rotation in one block are one instant",
}
LONGEST_S = 600
MOST_LIKELY = 12


def mutants():
    """Return every mutant that there is."""
    listed = subprocess.run(["node", MUTANTS, "list"], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in listed.stdout.splitlines()]


def likely(mutant):
    """Return the tests that are likely to kill a mutant, as pytest names them: those that name its error or function."""
    if mutant.get("before") in {"restricted", "onlyAuthorized"}:
        return [ROLES]
    function = mutant.get("where", "").rpartition(".")[2].lstrip("_")
    in_python = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", function).lower()
    word = mutant.get("error") or (f"{function}|{in_python}" if function else "nothing")
    found = []
    for suite in SUITES:
        for part in re.split(r"\n(?=def |@)", suite.read_text()):
            name = re.search(r"^def (test_\w+)", part, re.MULTILINE)
            if name and re.search(rf"\b({word})\b", part):
                found.append(f"{suite}::{name[1]}")
    return found[:MOST_LIKELY]


def is_killed(task):
    """Run the tests on a mutant, in this process, which ends afterwards; return its number and who killed it."""
    mutant, built = task
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LONGEST_S)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    for name, bytecode in built.items():
        artifacts.artifact(name)["bytecode"] = bytecode
    failed = []

    class Listener:
        def pytest_runtest_logreport(self, report):
            if report.failed:
                failed.append(report.nodeid.rpartition("::")[2])

    suites = [MARKET, EDGES, SECONDS, ROLES] if mutant["file"] in OF_THE_MARKET else list(SUITES)
    # the compiler that is quicker makes larger contracts than a chain takes
    with running_anvil("--hardfork", "osaka", "--code-size-limit", "100000") as url:
        try:
            world.embedded = starting_anew(url)
        except (MaxgreenError, ValueError) as error:
            return mutant["number"], f"the deployment ({type(error).__name__})"
        for tests in (likely(mutant), suites):
            arguments = [
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                "-k",
                "not anvil and not chain_file and not embedded_chain",
            ]
            if tests and not failed:
                pytest.main([*arguments, *map(str, tests)], plugins=[Listener()])
    return mutant["number"], failed[0] if failed else ""


def _too_long(*_):
    raise TimeoutError


def starting_anew(url):
    """Deploy on an anvil, and return what stands in for the embedded chain: each test begins after the deployment."""
    base = world.on_anvil(url)
    ask = base.chain.web3.provider.make_request
    snapshots = [ask("evm_snapshot", [])["result"]]

    def anew(_folder):
        ask("evm_revert", [snapshots.pop()])
        snapshots.append(ask("evm_snapshot", [])["result"])
        chain = connect(url, None)
        return world.World(chain, world.ChainClock(chain), base.accounts, addresses=base.deployment.addresses)

    return anew


def compiled(wanted, progress):
    """Yield mutants as they are compiled, by one process; those that do not compile are none."""
    with subprocess.Popen(["node", MUTANTS, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        for mutant in wanted:
            said = str(mutant["number"]) if mutant["number"] >= 0 else f"-1 {mutant['file']}"
            node.stdin.write(f"{said}\n")
            node.stdin.flush()
            answer = json.loads(node.stdout.readline())
            if "refused" in answer:
                progress(mutant["number"], None)
            else:
                yield mutant, answer["built"]
        node.stdin.close()


def main():
    """Try the mutants, and print the score; return 1 where a guard that is gone was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="of contracts/src; all of them otherwise")
    parser.add_argument("--kinds", nargs="*", help="guard, comparison, logic, arithmetic; all of them otherwise")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--part", default="1/1", help="K/N: of every N mutants the Kth")
    parser.add_argument("--numbers", type=int, nargs="*", help="these mutants alone")
    parser.add_argument("--json", type=Path, help="where every mutant's fate is written")
    options = parser.parse_args()
    known = {mutant["number"]: mutant for mutant in mutants()}
    wanted = [m for m in known.values() if not options.files or m["file"] in options.files]
    wanted = [m for m in wanted if not options.kinds or m["kind"] in options.kinds]
    part, parts = map(int, options.part.split("/"))
    wanted = sorted((m for k, m in enumerate(wanted) if k % parts == part % parts), key=lambda m: m["kind"] != "guard")
    if options.numbers is not None:
        wanted = [known[number] for number in options.numbers]
    fates = {}
    begun = time.monotonic()

    def progress(number, killer):
        fates[number] = killer
        mutant = known[number]
        why = argued(mutant)
        survives = f"SURVIVES, argued: {why}" if why else "SURVIVES"
        fate = {None: "does not compile", "": survives}.get(killer, f"killed by {killer}")
        change = f"{mutant['before'][:60]} -> {mutant['after'] or 'nothing'}"
        print(
            f"{len(fates)}/{len(wanted)} {time.monotonic() - begun:.0f}s {number} {mutant['where']}:{mutant['line']} "
            f"{mutant['kind']} {change}: {fate}",
            flush=True,
        )

    with multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=1) as pool:
        unchanged = [{"number": -1, "file": file} for file in sorted({mutant["file"] for mutant in wanted})]
        whole = {name: code for _, built in compiled(unchanged, progress) for name, code in built.items()}
        _, killer = pool.apply(is_killed, [({"number": -1, "file": ""}, whole)])
        if killer:
            sys.exit(f"{killer} fails without any change")
        for number, killer in pool.imap_unordered(is_killed, compiled(wanted, progress)):
            progress(number, killer)
    score(known, fates)
    if options.json:
        options.json.write_text(json.dumps({str(number): fates[number] for number in sorted(fates)}))
    return int(any(killer == "" and known[number]["kind"] == "guard" for number, killer in fates.items()))


def argued(mutant):
    """Return why a mutant does the same as the contracts, if that is known."""
    line = (ROOT / "contracts" / "src" / mutant["file"]).read_text().splitlines()[mutant["line"] - 1]
    for (file, before, part), why in ARGUED.items():
        if (file, before) == (mutant["file"], mutant["before"]) and part in line:
            return why
    return ""


def score(known, fates):
    """Print how many of each kind were killed."""
    for kinds in (("guard",), ("comparison", "arithmetic", "logic")):
        of_kind = [killer for number, killer in fates.items() if known[number]["kind"] in kinds and killer is not None]
        if of_kind:
            killed = Counter(bool(killer) for killer in of_kind)[True]
            alike = sum(not k and bool(argued(known[n])) for n, k in fates.items() if known[n]["kind"] in kinds)
            said = f"{killed} of {len(of_kind)} killed, {killed / len(of_kind):.1%}"
            print(f"{', '.join(kinds)}: {said}; {alike} of the others do the same, argued by name")


if __name__ == "__main__":
    sys.exit(main())
