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
  return `${text === "-0" || text === "" ? "0" : text} ${big ? "kW" : "W"}`;
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
