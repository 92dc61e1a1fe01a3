// Mutants of src/*.sol: `list` prints them as JSON lines; `serve` compiles those whose numbers come on standard input, a
// line each, and answers with a line of {number, built: {contract: {abi, bytecode}}} or {number, refused}.
import { readFileSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import solc from "solc";

const here = dirname(fileURLToPath(import.meta.url));
const names = readdirSync(join(here, "src")).filter((name) => name.endsWith(".sol")).sort();
const bytes = Object.fromEntries(names.map((name) => [name, readFileSync(join(here, "src", name))]));
const findImports = (path) => ({ contents: readFileSync(join(here, "node_modules", path), "utf8") });
const OTHER = {
  "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&",
  "+": "-", "-": "+", "*": "/", "/": "*", "%": "*", "+=": "-=", "-=": "+=", "|": "&", "&": "|", "<<": ">>", ">>": "<<",
}; // prettier-ignore
const COMPARES = new Set(["<", "<=", ">", ">=", "==", "!="]);
const LOGIC = new Set(["&&", "||"]);

function compile(sources, outputSelection) {
  const settings = { evmVersion: "cancun", optimizer: { enabled: true, runs: 100 }, outputSelection };
  const input = { language: "Solidity", sources, settings };
  return JSON.parse(solc.compile(JSON.stringify(input), { import: findImports }));
}

function sourcesWith(changed = {}) {
  return Object.fromEntries(names.map((name) => [`src/${name}`, { content: (changed[name] ?? bytes[name]).toString() }]));
}

const parsed = compile(sourcesWith(), { "*": { "": ["ast"] } });
const children = (node) => Object.values(node ?? {}).filter((child) => child && typeof child === "object");
const place = (node) => node.src.split(":").map(Number);

// what must be compiled again when a file changes: who inherits from it, uses its libraries, or creates what does
const contracts = {};
for (const [path, { ast }] of Object.entries(parsed.sources)) {
  for (const node of ast.nodes) if (node.nodeType === "ContractDefinition") contracts[node.id] = { ...node, path };
}
const libraries = Object.values(contracts).filter((one) => one.contractKind === "library");
const referred = (node, found = new Set()) => {
  if (node.referencedDeclaration !== undefined) found.add(node.referencedDeclaration);
  for (const child of children(node)) referred(child, found);
  return found;
};
const owner = {}; // of a library's function, by the function's number
for (const one of libraries) for (const node of one.nodes) owner[node.id] = one.id;
const used = {};
for (const one of Object.values(contracts)) used[one.id] = new Set([...referred(one.nodes)].map((id) => owner[id]).filter(Boolean));
const near = (id, seen = new Set()) => {
  if (seen.has(id)) return seen;
  seen.add(id);
  for (const other of [...contracts[id].linearizedBaseContracts, ...contracts[id].contractDependencies, ...used[id]]) near(other, seen);
  return seen;
};
const made = Object.values(contracts).filter(
  (one) => one.path.startsWith("src/") && !one.abstract && one.contractKind === "contract",
);
const files = Object.fromEntries(made.map((one) => [one.name, new Set([...near(one.id)].map((id) => contracts[id].path))]));
const built = (file) => made.filter((one) => files[one.name].has(`src/${file}`));

function* mutantsOf(name) {
  const data = bytes[name];
  const cut = (from, to) => data.subarray(from, to).toString();
  const at = (offset) => cut(0, offset).split("\n").length;
  function* visit(node, where) {
    if (node === null || typeof node !== "object") return;
    if (node.nodeType === "ContractDefinition") where = node.name;
    if (node.nodeType === "FunctionDefinition") where = `${where.split(".")[0]}.${node.name || node.kind}`;
    const make = (kind, from, length, after) => ({ file: name, line: at(from), where, kind, from, length, before: cut(from, from + length), after });
    if (node.nodeType === "RevertStatement" || node.nodeType === "EmitStatement" || node.nodeType === "ImportDirective") return;
    if (node.nodeType === "IfStatement") {
      const body = node.trueBody.nodeType === "Block" ? node.trueBody.statements[0] : node.trueBody;
      if (body?.nodeType === "RevertStatement" && !node.falseBody) {
        const [from, length] = place(node.condition);
        yield { ...make("guard", from, length, "false"), error: body.errorCall.expression.name ?? "" };
      }
    }
    if (node.nodeType === "ModifierInvocation" && node.kind === "modifierInvocation") {
      const [from, length] = place(node);
      yield make("guard", from, length, "");
    }
    if (node.nodeType === "BinaryOperation" || (node.nodeType === "Assignment" && node.operator !== "=")) {
      const operator = node.operator;
      const [left, right] = node.nodeType === "Assignment" ? [node.leftHandSide, node.rightHandSide] : [node.leftExpression, node.rightExpression];
      const from = place(left)[0] + place(left)[1];
      const between = cut(from, place(right)[0]);
      if (operator in OTHER && between.includes(operator)) {
        const kind = COMPARES.has(operator) ? "comparison" : LOGIC.has(operator) ? "logic" : "arithmetic";
        yield make(kind, from + Buffer.byteLength(between.slice(0, between.indexOf(operator))), operator.length, OTHER[operator]);
      }
    }
    for (const child of children(node)) yield* visit(child, where);
  }
  yield* visit(parsed.sources[`src/${name}`].ast, "");
}

const mutants = names.flatMap((name) => [...mutantsOf(name)]);
if (process.argv[2] === "list") {
  for (const [number, mutant] of mutants.entries()) {
    console.log(JSON.stringify({ number, ...mutant, before: mutant.before.replace(/\s+/g, " "), contracts: built(mutant.file).map((one) => one.name) }));
  }
} else {
  for await (const line of createInterface({ input: process.stdin })) {
    const number = Number(line); // -1: as it is
    const { file, from, length, after } = mutants[number] ?? { file: line.split(" ")[1], from: 0, length: 0, after: "" };
    const changed = Buffer.concat([bytes[file].subarray(0, from), Buffer.from(after), bytes[file].subarray(from + length)]);
    const wanted = built(file);
    const selection = {};
    for (const one of wanted) (selection[one.path] ??= {})[one.name] = ["evm.bytecode.object"];
    const output = compile(sourcesWith({ [file]: changed }), selection);
    const errors = (output.errors ?? []).filter((error) => error.severity === "error");
    const refused = errors.map((error) => error.formattedMessage ?? error.message).join("\n");
    const code = Object.fromEntries(wanted.map((one) => [one.name, `0x${output.contracts?.[one.path]?.[one.name]?.evm.bytecode.object}`]));
    console.log(JSON.stringify(errors.length > 0 ? { number, refused } : { number, built: code }));
  }
}
