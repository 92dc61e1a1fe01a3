// A day as curves. Hours are those of the zone that the page names, whatever the browser's zone is.
import uPlot from "uplot";

const element = document.getElementById("curve");

function hours(times, zone) {
  const hour = new Intl.DateTimeFormat("en-GB", { timeZone: zone, hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  const step = element.clientWidth < 500 ? 6 : 3;
  const splits = times.filter((t) => {
    const [h, m] = hour.format(t * 1000).split(":").map(Number);
    return m === 0 && h % step === 0;
  });
  return { splits, said: (values) => values.map((t) => hour.format(t * 1000)), at: (t) => hour.format(t * 1000) };
}

function watts(value) {
  if (value === null || value === undefined) return "–";
  const big = Math.abs(value) >= 1000;
  const text = String(Number((big ? value / 1000 : value).toPrecision(3)));
  return `${document.documentElement.lang === "es" ? text.replace(".", ",") : text} ${big ? "kW" : "W"}`;
}

async function draw() {
  const answer = await fetch(element.dataset.src);
  const day = await answer.json();
  const names = Object.keys(day.watts);
  const said_names = JSON.parse(element.dataset.names);
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(`--${name.split(" ")[0]}`).trim() || style.getPropertyValue("--ink").trim();
  const { splits, said, at } = hours(day.times, element.dataset.zone);
  const grid = { stroke: style.getPropertyValue("--line").trim(), width: 1 };
  const axis = { stroke: style.getPropertyValue("--dim").trim(), grid, ticks: grid };
  const plot = new uPlot(
    {
      width: element.clientWidth,
      height: 260,
      scales: { x: { time: false }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), Math.max(high || 0, 0.001) * 1.05] } },
      axes: [
        { ...axis, splits: () => splits, values: (_, values) => said(values) },
        { ...axis, size: 64, values: (_, values) => values.map(watts) },
      ],
      series: [
        { label: element.dataset.time, value: (_, t) => (t === null ? "–" : at(t)) },
        ...names.map((name, k) => ({ label: said_names[name] ?? name, stroke: color(name), width: 2, dash: k ? [7, 4] : undefined, spanGaps: false, value: (_, v) => watts(v) })),
      ],
    },
    [day.times, ...names.map((name) => day.watts[name])],
    element,
  );
  new ResizeObserver(() => plot.setSize({ width: element.clientWidth, height: 260 })).observe(element);
}

if (element) draw();
