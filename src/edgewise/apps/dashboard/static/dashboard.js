// Interactive charts of the data that the page draws already, and a run page that follows its run.
// Without this file every page works all the same.
"use strict";

const COLOURS = ["--s0", "--s1", "--s2", "--s3", "--s4", "--s5", "--s6", "--s7"];
const plots = new Map(); // element -> chart
let latest = null; // the newest data of the run page

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function written(value, unit) {
  if (value == null) return "–";
  if (unit === "bytes") {
    for (const [name, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
      if (Math.abs(value) >= size) return `${(value / size).toPrecision(3)} ${name}`;
    return `${value} B`;
  }
  return Number(value.toPrecision(4)).toLocaleString("en");
}

// Without a pointer the legend shows the newest round.
function showLast(plot) {
  plot.setLegend({ idx: plot.data[0].length - 1 }, false);
}

function draw(element, chart, unit, limit) {
  const width = element.clientWidth;
  if (!chart.series.length || chart.x.length < 2 || width < 100) return;
  const rows = [chart.x, ...chart.series.map((one) => one.y)];
  const series = [{ label: "round" }, ...chart.series.map((one, i) => ({
    label: one.name, stroke: () => colour(COLOURS[i % COLOURS.length]), width: 2, spanGaps: true,
    value: (_, v) => written(v, unit),
  }))];
  if (limit != null) {
    rows.push(chart.x.map(() => limit));
    series.push({ label: "budget", stroke: () => colour("--soft"), dash: [6, 4], width: 1.5, points: { show: false } });
  }
  const axis = { stroke: () => colour("--soft"), grid: { stroke: () => colour("--grid"), width: 1 }, ticks: { show: false } };
  const known = plots.get(element);
  if (known && known.series.length === series.length) {
    known.setData(rows);
    return;
  }
  if (known) known.destroy();
  element.replaceChildren();
  plots.set(element, new uPlot({
    width, height: 230, series, scales: { x: { time: false } }, cursor: { drag: { x: true, y: false } },
    hooks: { ready: [showLast], setData: [showLast], setCursor: [(u) => u.cursor.idx == null && showLast(u)] },
    axes: [{ ...axis, values: (_, at) => at.map((v) => (Number.isInteger(v) ? v.toLocaleString("en") : "")) },
           { ...axis, size: 70, values: (_, at) => at.map((v) => written(v, unit)) }],
  }, rows, element));
}

function drawAll(data) {
  latest = data;
  for (const element of document.querySelectorAll("[data-chart]")) {
    const name = element.dataset.chart;
    const chart = name === "compare" ? data.losses : data.charts[name];
    if (chart) draw(element, chart, name === "bytes" ? "bytes" : "", name === "epsilon" ? data.budget : null);
  }
}

async function load() {
  if (!document.querySelector("[data-chart]")) return;
  const answer = await fetch(`${location.pathname}.json${location.search}`, { headers: { accept: "application/json" } });
  if (answer.ok) drawAll(await answer.json());
}

function follow() {
  const run = document.querySelector("[data-live]");
  if (!run || run.dataset.state !== "running") return;
  let waits = false;
  const events = new EventSource(`${run.dataset.live}/live`);
  let first = true;
  events.addEventListener("changed", () => {
    if (first) { first = false; return; } // the page shows this state already
    if (waits) return;
    waits = true;
    setTimeout(async () => { waits = false; await refresh(run); }, 500);
  });
  addEventListener("pagehide", () => events.close());
}

async function refresh(run) {
  const answer = await fetch(run.dataset.live);
  if (!answer.ok || answer.redirected) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-live]");
  for (const part of [".cards", ".line"]) {
    const from = page && page.querySelector(part), to = run.querySelector(part);
    if (from && to && !to.contains(document.activeElement)) { to.replaceWith(from); htmx.process(from); }
  }
  await load();
}

addEventListener("resize", () => {
  for (const [element, plot] of plots)
    if (element.isConnected) plot.setSize({ width: element.clientWidth, height: 230 });
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const plot of plots.values()) plot.redraw();
});
document.addEventListener("htmx:afterSwap", () => { plots.clear(); if (latest) load(); });
document.addEventListener("DOMContentLoaded", () => { load(); follow(); });
