// Wallets in the browser (EIP-6963, EIP-1193): signing in, and signing what an action needs.
import { decodeFunctionData, encodeFunctionData } from "viem";
import { ABI } from "./abi.js";

// Texts are English here; a page in another language brings them along.
const texts = JSON.parse(document.getElementById("texts")?.textContent ?? "{}");
const say = (text, values = {}) => (texts[text] ?? text).replace(/\{(\w+)\}/g, (_, name) => values[name]);

const contracts = JSON.parse(document.getElementById("contracts")?.textContent ?? "{}");
const found = new Map();
const listeners = new Set();

window.addEventListener("eip6963:announceProvider", (event) => {
  found.set(event.detail.info.uuid, event.detail);
  listeners.forEach((tell) => tell());
});
window.dispatchEvent(new Event("eip6963:requestProvider"));
setTimeout(() => {
  if (!found.size && window.ethereum) {
    found.set("window.ethereum", { info: { uuid: "window.ethereum", name: say("Browser wallet"), icon: "" }, provider: window.ethereum });
  }
  listeners.forEach((tell) => tell());
}, 400);

function words(error) {
  if (error?.code === 4001) return say("You declined in the wallet.");
  if (error?.code === -32002) return say("The wallet waits for you: open it.");
  return error?.message || String(error);
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function post(url, fields, json) {
  const body = json ? JSON.stringify(fields) : new URLSearchParams(fields);
  const headers = { Accept: "application/json", ...(json ? { "Content-Type": "application/json" } : {}) };
  const answer = await fetch(url, { method: "POST", body, headers });
  if (!answer.ok) throw new Error((await answer.json()).detail);
  return answer;
}

// Signing in

const box = document.getElementById("wallets");
if (box) {
  const status = document.getElementById("wallet-status");
  const show = () => {
    box.replaceChildren();
    if (!found.size) box.append(element("p", say("There is no wallet in this browser."), "note"));
    for (const { info, provider } of found.values()) {
      const button = element("button", info.name, "button wide");
      if (info.icon?.startsWith("data:image/")) {
        const icon = element("img");
        [icon.src, icon.alt, icon.width, icon.height] = [info.icon, "", 24, 24];
        button.prepend(icon);
      }
      button.addEventListener("click", () => signIn(info, provider, status));
      box.append(button);
    }
  };
  listeners.add(show);
}

async function signIn(info, provider, status) {
  try {
    status.textContent = say("The wallet asks you.");
    const [address] = await provider.request({ method: "eth_requestAccounts" });
    const text = await (await post("/sign-in/text", { address })).text();
    const hex = `0x${[...new TextEncoder().encode(text)].map((b) => b.toString(16).padStart(2, "0")).join("")}`;
    const signature = await provider.request({ method: "personal_sign", params: [hex, address] });
    await post("/sign-in", { text, signature });
    localStorage.setItem("wallet", info.rdns ?? info.name);
    const there = new URL(document.getElementById("sign-in").dataset.to, location.origin);
    location.assign(there.origin === location.origin ? there : "/home");
  } catch (error) {
    status.textContent = words(error);
  }
}

// Actions

const form = document.getElementById("act");
if (form) {
  const steps = document.getElementById("act-steps");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    form.querySelectorAll("button").forEach((button) => { button.disabled = true; });
    steps.replaceChildren();
    let done = false;
    try {
      done = await act(form, steps);
    } catch (error) {
      steps.append(element("p", words(error), "note bad"));
    }
    form.querySelectorAll("button").forEach((button) => { button.disabled = false; });
    form.hidden = done; // nobody does it twice by a second press
    if (done) steps.append(after(form));
  });
  form.querySelectorAll("button").forEach((button) => { button.disabled = false; }); // a press before now would send a form to a page
}

// Where to go when it is done.
function after(form) {
  const ways = element("p");
  for (const [address, text] of [[form.dataset.done, say("Go on")], [location.pathname, say("Once more")]]) {
    const way = element("a", text, ways.childElementCount ? "" : "button");
    way.href = address;
    ways.append(way, " ");
  }
  return ways;
}

async function act(form, steps) {
  const values = Object.fromEntries(new FormData(form));
  for (let count = 0; ; count += 1) {
    const { transaction, why } = await (await post(`/api/v1/actions/${form.dataset.action}`, values, true)).json();
    if (!transaction) {
      steps.append(element("p", count ? say("Done.") : why, "note"));
      return count > 0;
    }
    if (!(await sign(transaction, form, steps))) return false;
    if (transaction.last) {
      steps.append(element("p", say("Done."), "note good"));
      return true;
    }
  }
}

// What the wallet is asked to sign is decoded here from its bytes, encoded again and compared.
function read(transaction) {
  const known = contracts[transaction.contract];
  if (known && known.toLowerCase() !== transaction.to.toLowerCase()) throw new Error(say("This is no call to a contract that these pages know; nothing is signed."));
  const abi = ABI[transaction.contract];
  if (!abi) throw new Error(say("This is no call to a contract that these pages know; nothing is signed."));
  const { functionName, args } = decodeFunctionData({ abi, data: transaction.data });
  if (encodeFunctionData({ abi, functionName, args }) !== transaction.data) throw new Error(say("These bytes are not what they seem; nothing is signed."));
  const inputs = abi.find((entry) => entry.name === functionName && entry.inputs.length === (args?.length ?? 0)).inputs;
  return { functionName, rows: inputs.map((input, k) => [input.name, args[k]]) };
}

function plain(value) {
  return JSON.stringify(value, (_, one) => (typeof one === "bigint" ? one.toString() : one), 1);
}

// Shows what would be signed as a sentence, its bytes beneath it, and signs it when it is agreed to.
async function sign(transaction, form, steps) {
  const { functionName, rows } = read(transaction);
  const step = element("section", "", "card");
  step.append(element("p", transaction.says.charAt(0).toUpperCase() + transaction.says.slice(1)));
  const details = element("details");
  details.append(element("summary", `${transaction.contract}.${functionName}`), element("p", transaction.to, "dim"), element("pre", rows.map(([name, value]) => `${name}: ${plain(value)}`).join("\n")), element("p", `${transaction.data.length / 2 - 1} bytes`, "dim"));
  const status = element("p", "", "status");
  status.setAttribute("role", "status");
  const buttons = element("p");
  step.append(details, buttons, status);
  steps.append(step);
  form.hidden = true;
  const agreed = await asked(buttons);
  form.hidden = agreed;
  if (!agreed) {
    step.remove();
    return false;
  }
  const hash = await send(await chosen(), transaction, form.dataset.account, status);
  status.textContent = say("Sent: {hash}. It waits for a block.", { hash });
  for (let tries = 0; tries < 400; tries += 1) {
    await new Promise((done) => { setTimeout(done, Math.min(600 + 20 * tries, 3000)); });
    const answer = await fetch(`/api/v1/transactions/${hash}`);
    if (!answer.ok) continue;
    const outcome = await answer.json();
    if (outcome.state === "done") {
      status.textContent = say("In block {block}.", outcome);
      return true;
    }
    if (outcome.state === "failed") {
      status.textContent = say("It failed in block {block}: {why}", { ...outcome, why: outcome.why || say("the chain does not say why") });
      return false;
    }
  }
  status.textContent = say("Still no block has it: {hash}. Look in the wallet whether it was replaced.", { hash });
  return false;
}

function asked(buttons) {
  return new Promise((done) => {
    for (const [text, agreed] of [[say("Sign"), true], [say("Back"), false]]) {
      const button = element("button", text, agreed ? "button sign" : "");
      button.type = "button";
      button.addEventListener("click", () => {
        buttons.remove();
        done(agreed);
      });
      buttons.append(button, " ");
    }
    buttons.firstElementChild.focus();
  });
}

async function chosen() {
  for (let tries = 0; !found.size && tries < 20; tries += 1) await new Promise((done) => { setTimeout(done, 100); });
  const last = localStorage.getItem("wallet");
  const all = [...found.values()];
  const one = all.find(({ info }) => (info.rdns ?? info.name) === last) ?? all[0];
  if (!one) throw new Error(say("There is no wallet in this browser."));
  return one.provider;
}

async function send(provider, transaction, account, status) {
  const accounts = await provider.request({ method: "eth_requestAccounts" });
  if (!accounts.some((one) => one.toLowerCase() === account.toLowerCase())) {
    throw new Error(say("You signed in as {account}, and the wallet is at {other}: choose the account in the wallet.", { account, other: accounts[0] }));
  }
  const wanted = `0x${transaction.chain_id.toString(16)}`;
  if ((await provider.request({ method: "eth_chainId" })) !== wanted) {
    status.textContent = say("The wallet is asked to change its network.");
    await provider.request({ method: "wallet_switchEthereumChain", params: [{ chainId: wanted }] });
  }
  status.textContent = say("The wallet asks you.");
  return provider.request({ method: "eth_sendTransaction", params: [{ from: account, to: transaction.to, data: transaction.data, value: "0x0" }] });
}
