// Compiles src/*.sol and writes ABI, bytecode and runtime code to maxgreen/chain/artifacts; --check compares instead.
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import solc from "solc";

const here = dirname(fileURLToPath(import.meta.url));
const artifacts = join(here, "..", "maxgreen", "chain", "artifacts");
const names = readdirSync(join(here, "src")).filter((name) => name.endsWith(".sol")).sort();
const sources = Object.fromEntries(
  names.map((name) => [`src/${name}`, { content: readFileSync(join(here, "src", name), "utf8") }]),
);
const input = {
  language: "Solidity",
  sources,
  settings: {
    evmVersion: "cancun", // osaka's CLZ is not in every chain yet
    optimizer: { enabled: true, runs: 200 },
    viaIR: true, // a minute longer to compile, a sixth less to deploy
    metadata: { bytecodeHash: "none", appendCBOR: false },
    outputSelection: { "*": { "": ["ast"], "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode"] } },
  },
};
const findImports = (path) => ({ contents: readFileSync(join(here, "node_modules", path), "utf8") });
const output = JSON.parse(solc.compile(JSON.stringify(input), { import: findImports }));

const problems = (output.errors ?? []).filter((e) => e.severity === "error" || !e.sourceLocation || e.sourceLocation.file.startsWith("src/"));
for (const problem of problems) console.error(problem.formattedMessage ?? problem.message);
if (problems.length > 0) process.exit(1);

// the names of immutable variables, which the compiler calls by the numbers of their declarations
const immutables = {};
const libraries = new Set();
const visit = (node) => {
  if (node?.nodeType === "ContractDefinition" && node.contractKind === "library") libraries.add(node.name);
  if (node?.nodeType === "VariableDeclaration" && node.mutability === "immutable") immutables[node.id] = node.name;
  for (const child of Object.values(node ?? {})) if (child && typeof child === "object") visit(child);
};
for (const { ast } of Object.values(output.sources)) visit(ast);
const named = (references) =>
  Object.fromEntries(
    Object.entries(references ?? {}).map(([id, places]) => [immutables[id], places.map(({ start }) => start).sort((a, b) => a - b)]),
  );

const digest = createHash("sha256").update(JSON.stringify(sources)).digest("hex");
const built = {};
for (const name of names) {
  for (const [contract, out] of Object.entries(output.contracts[`src/${name}`] ?? {})) {
    if (out.evm.bytecode.object === "" || libraries.has(contract)) continue; // a library is part of who uses it
    const size = out.evm.deployedBytecode.object.length / 2;
    if (size > 24576) throw new Error(`${contract}: ${size} bytes at run time, over 24,576 (EIP-170)`);
    built[contract] = {
      abi: out.abi,
      bytecode: `0x${out.evm.bytecode.object}`,
      runtime: `0x${out.evm.deployedBytecode.object}`,
      immutables: named(out.evm.deployedBytecode.immutableReferences), // where words of 32 bytes stand in it
      runtimeBytes: size,
    };
  }
}
const text = (value) => `${JSON.stringify(value)}\n`;
const files = Object.fromEntries(Object.entries(built).map(([name, value]) => [`${name}.json`, text(value)]));
files["sources.json"] = text({ solc: solc.version(), settings: input.settings, sha256: digest });

if (process.argv.includes("--check")) {
  const stale = Object.entries(files).filter(([name, content]) => {
    try {
      return readFileSync(join(artifacts, name), "utf8") !== content;
    } catch {
      return true;
    }
  });
  if (stale.length > 0) {
    console.error(`stale: ${stale.map(([name]) => name).join(", ")}; run: make contracts`);
    process.exit(1);
  }
  console.log(`${Object.keys(files).length - 1} contracts match their sources`);
} else {
  mkdirSync(artifacts, { recursive: true });
  for (const [name, content] of Object.entries(files)) writeFileSync(join(artifacts, name), content);
  for (const [name, { runtimeBytes }] of Object.entries(built)) console.log(`${name}: ${runtimeBytes} bytes`);
}
