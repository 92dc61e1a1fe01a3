// What every page does: htmx for what changes, power as it is now, the visitor's time zone.
import "htmx.org";

const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
if (zone && !document.cookie.includes(`tz=${encodeURIComponent(zone)}`)) {
  const known = document.cookie.includes("tz=");
  document.cookie = `tz=${encodeURIComponent(zone)};path=/;max-age=31536000;samesite=lax`;
  if (!known && document.querySelector("[data-zone]")) location.reload();
}

function power(watts) {
  const big = Math.abs(watts) >= 1000;
  const text = (big ? watts / 1000 : watts).toFixed(big ? 2 : 1).replace(/\.?0+$/, "");
  const shown = text === "-0" || text === "" ? "0" : text;
  return `${document.documentElement.lang === "es" ? shown.replace(".", ",") : shown} ${big ? "kW" : "W"}`;
}

function follow(element) {
  const source = new EventSource(element.dataset.live);
  source.onmessage = (event) => {
    const state = JSON.parse(event.data);
    const shown = state.channels.filter((c) => c.role === "generation");
    const first = (shown.length ? shown : state.channels)[0];
    const big = element.querySelector("[data-power]");
    if (big && first && first.watts !== null && !state.silent) big.textContent = power(first.watts);
    for (const channel of state.channels) {
      const cell = element.querySelector(`[data-channel="${channel.channel}"]`);
      if (cell && channel.watts !== null && !state.silent) cell.textContent = power(channel.watts);
    }
  };
  return source;
}

// One stream for a page: a browser keeps few connections to a host.
let streams = [];
function begin() {
  streams.forEach((source) => source.close());
  streams = document.hidden ? [] : [...document.querySelectorAll("[data-live]")].slice(0, 3).map(follow);
}
document.addEventListener("visibilitychange", begin);
document.addEventListener("htmx:after:swap", begin);
begin();

// On a narrow screen a table is a list of cards: each value then has its column's title beside it.
function label() {
  for (const table of document.querySelectorAll(".scroll table:not([role])")) {
    const titles = [...table.querySelectorAll("thead th")].map((th) => th.textContent.trim());
    if (!titles.length) continue;
    table.setAttribute("role", "table"); // which browsers forget of tables that are shown as blocks
    table.querySelectorAll("tr").forEach((row) => row.setAttribute("role", "row"));
    table.querySelectorAll("thead th").forEach((th) => th.setAttribute("role", "columnheader"));
    for (const row of table.querySelectorAll("tbody tr")) {
      [...row.children].forEach((cell, k) => {
        cell.setAttribute("role", cell.tagName === "TH" ? "rowheader" : "cell");
        if (titles[k]) cell.dataset.title = titles[k];
      });
    }
  }
}
document.addEventListener("htmx:after:swap", label);
label();

for (const secret of document.querySelectorAll(".secret, [data-copy]")) {
  const button = document.createElement("button");
  [button.type, button.className, button.textContent] = ["button", "copy", document.body.dataset.copyText];
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(secret.textContent);
    button.textContent = document.body.dataset.copiedText;
  });
  if (navigator.clipboard) secret.after(" ", button);
}

for (const link of document.querySelectorAll("a[data-csv]")) {
  link.addEventListener("click", async (event) => {
    event.preventDefault();
    const answer = await fetch(link.href, { headers: { Accept: "text/csv" } });
    const file = document.createElement("a");
    file.href = URL.createObjectURL(await answer.blob());
    file.download = `${link.pathname.split("/").at(-1)}.csv`;
    file.click();
  });
}
