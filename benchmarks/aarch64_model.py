"""A MODEL of what the aarch64 kernels cost on a Pi's cores: no Pi was measured.

    python benchmarks/aarch64_model.py [--json]

Each kernel's block mix (2,048 of them make a hash) is compiled with its loops unrolled, its instructions are counted,
and llvm-mca estimates the cycles that they take when memory costs nothing. llvm-mca models the A76 by the Neoverse N1,
and the A72 by the A57, whose vector shifts go to both pipes: it may be too kind to NEON there. Needs
aarch64-linux-gnu-gcc and llvm-mca (apt: gcc-aarch64-linux-gnu, llvm-19: older models know no Neoverse N1).
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NATIVE = Path(__file__).parents[1] / "native"
# name: compiler's -mcpu, llvm-mca's -mcpu, GHz of the Pi that has it
CORES = {
    "A53 (Pi 3, Zero 2 W)": ("cortex-a53", "cortex-a53", 1.4),
    "A72 (Pi 4)": ("cortex-a72", "cortex-a57", 1.8),
    "A76 (Pi 5)": ("cortex-a76", "neoverse-n1", 2.4),
}
# kernel: hashes side by side, block mixes per step (rows that are not kept are computed again), function that mixes
KERNELS = {
    "portable": (1, 1.0, "void model(uint32_t *x) { block_mix(x); }"),
    "neon_diagonal": (4, 1.0, "void model(block *x) { block_mix(x, 4); }"),
    "neon_gap2": (2, 1.25, "void model(block *x) { block_mix(x, 2); }"),
    "neon_gap4": (4, 1.75, "void model(block *x) { block_mix(x, 4); }"),
    "neon_vertical": (4, 1.0, "void model(block *b) { block_mix(b); }"),
    "neon_mixed": (5, 1.0, "void model(block *b) { block_mix(b); }"),
}
BLOCK_MIXES = 2_048
ITERATIONS = 200


def main() -> None:
    """Model every kernel on every core and print a table, or one JSON object."""
    mca = next((found for name in ("llvm-mca-19", "llvm-mca") if (found := shutil.which(name))), None)
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    if mca is None or compiler is None:
        sys.exit("llvm-mca and aarch64-linux-gnu-gcc are needed: apt-get install llvm-19 gcc-aarch64-linux-gnu")
    result = {name: {core: _model(compiler, mca, name, core) for core in CORES} for name in KERNELS}
    print(json.dumps(result) if "--json" in sys.argv else _table(result))


def _model(compiler: str, mca: str, name: str, core: str) -> dict[str, float]:
    lanes, steps, wrapper = KERNELS[name]
    build_for, model_of, ghz = CORES[core]
    text = _assembly(compiler, name, wrapper, build_for)
    code = [line for line in text.splitlines() if re.match(r"\t[a-z]", line)]
    done = subprocess.run(
        [mca, "-march=aarch64", f"-mcpu={model_of}", f"-iterations={ITERATIONS}"],
        input="\n".join(code),
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    if found is None:
        raise SystemExit(f"llvm-mca said nothing of {name}")
    cycles = int(found[1]) / ITERATIONS / lanes * steps
    return {
        "instructions": len(code) / lanes * steps,
        "cycles": cycles,
        "khs": ghz * 1e6 / (cycles * BLOCK_MIXES),
    }


def _assembly(compiler: str, name: str, wrapper: str, build_for: str) -> str:
    """Return the instructions of a kernel's block mix, straight from start to end."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.c"
        kernel = (NATIVE / f"{name}.c").read_text()
        unrolled = re.sub(r"for \(int (i|round) = 0; \1 < (16|8);", r'_Pragma("GCC unroll 16") \g<0>', kernel)
        inlined = re.sub(
            r"static (void (?:xor_salsa8|block_mix))", r"static inline __attribute__((always_inline)) \1", unrolled
        )
        source.write_text(f"{inlined}\n{wrapper}\n")
        for header in NATIVE.glob("*.h"):
            text = header.read_text().replace("#define KEEP_LOOP", "#define KEEP_LOOP UNROLL //")
            # everything is put into one function, so that nothing but the mixing is counted
            text = text.replace("FUNCTION void block_mix", "INLINE void block_mix")
            (Path(folder) / header.name).write_text(text)
        done = subprocess.run(
            [compiler, "-S", "-O3", "-std=gnu11", "-D_GNU_SOURCE", "-w", f"-mcpu={build_for}",
             "-fno-tree-vectorize", "-fno-tree-slp-vectorize", "-o", "-", str(source)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    found = re.search(r"\nmodel:\n(.*?)\n\t\.size\tmodel", done.stdout, re.DOTALL)
    if found is None or re.search(r"\tb\.?[a-z]*\t\.L|\tbl\t", found[1]):
        raise SystemExit(f"{name}: the mixing is not straight; the model does not hold")
    return found[1]


def _table(result: dict[str, Any]) -> str:
    lines = ["MODEL, not measured: cycles of one block mix per hash (kH/s of one core at its clock), memory free", ""]
    lines.append(f"{'kernel':<15}{'instr.':>8}" + "".join(f"{core:>24}" for core in CORES) + "   x portable")
    for name, cores in result.items():
        cells = "".join(f"{value['cycles']:>15.0f} ({value['khs']:5.2f})" for value in cores.values())
        ratios = " ".join(
            f"{result['portable'][core]['cycles'] / value['cycles']:.2f}" for core, value in cores.items()
        )
        instructions = next(iter(cores.values()))["instructions"]
        lines.append(f"{name:<15}{instructions:>8.0f}{cells}   {ratios}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
