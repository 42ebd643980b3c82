// The monitor page. Everything that comes from the server, device names included, is set as text, never as markup.

import { Chart } from "./charts.js";

const HISTORY_S = 300;
const SILENT_S = 30;
const LOST_MS = 5000;

const byId = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

const chartFps = new Chart(byId("chart-fps"), [{ key: "fps", name: "frames/s", style: "first" }], HISTORY_S, "");
const chartLatency = new Chart(
  byId("chart-latency"),
  [{ key: "p50", name: "p50", style: "first" }, { key: "p95", name: "p95", style: "second" }],
  HISTORY_S, " ms",
);
let points = [];
let heard = 0;

// ---------------------------------------------------------------- words

function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

function made(name, value, style) {
  const node = document.createElement(name);
  if (value !== undefined) node.textContent = value;
  if (style) node.className = style;
  return node;
}

// A large figure with its unit.
function figure(id, value, unit) {
  const node = byId(id);
  const key = `${value} ${unit}`;
  if (node.dataset.shown === key) return;
  node.dataset.shown = key;
  node.replaceChildren(value, " ", made("small", unit));
}

function bytes(value) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 1000 || unit === "GB") return [digits.format(value), unit];
    value /= 1000;
  }
}

function ms(value) {
  return value == null ? "–" : digits.format(value);
}

function duration(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

const ago = (seconds) => (seconds < 2 ? "now" : `${duration(seconds)} ago`);

// ---------------------------------------------------------------- lists that keep their nodes

// One row per item; make(item) gives [[label, content, class], …], content a string or nodes.
function fillTable(id, items, make, style) {
  const table = byId(id), body = table.tBodies[0];
  while (body.rows.length > items.length) body.deleteRow(-1);
  items.forEach((item, i) => {
    const row = body.rows[i] ?? body.insertRow();
    row.className = style ? style(item) : "";
    make(item).forEach(([label, content, name], j) => {
      const cell = row.cells[j] ?? row.insertCell();
      cell.dataset.label = label;
      cell.className = `${name ?? ""}${content === "–" ? " none" : ""}`;
      if (typeof content === "string") {
        if (cell.firstElementChild || cell.textContent !== content) cell.textContent = content;
      } else {
        const said = content.map((node) => `${node.className} ${node.title} ${node.textContent}`).join("|");
        if (cell.dataset.said !== said || !cell.firstElementChild) {
          cell.dataset.said = said;
          cell.replaceChildren(...content);
        }
      }
    });
  });
  table.hidden = items.length === 0;
}

function fillLog(id, items, now) {
  const list = byId(id);
  byId(`${id}-empty`).hidden = items.length > 0;
  while (list.children.length > items.length) list.lastChild.remove();
  items.forEach((item, i) => {
    let entry = list.children[i];
    if (!entry) {
      entry = made("li");
      entry.append(made("small"), made("b"), made("p"));
      list.append(entry);
    }
    const [time, kind, what] = entry.children;
    text(time, ago(now - item.wall));
    time.title = new Date(item.wall * 1000).toISOString();
    text(kind, item.count > 1 ? `${item.kind} × ${whole.format(item.count)}` : item.kind);
    const from = [item.device, item.protocol].filter(Boolean).join(", ");
    text(what, from ? `${from}: ${item.text}` : item.text);
  });
}

// ---------------------------------------------------------------- parts of the page

function badge(value, style) {
  return made("span", value, `badge ${style}`);
}

function drift(value) {
  if (value == null) return "–";
  const shown = digits.format(value);
  return value >= 1 ? [badge(`${shown} drifted`, "gone")] : value >= 0.7 ? [badge(`${shown} near`, "waiting")] : shown;
}

const STATES = { ready: "ready", warming: "warming", quarantined: "quarantined" };

function showModels(models) {
  fillTable("models", models, (m) => {
    const name = made("b", m.version ? `${m.name} ${m.version}` : m.name);
    const state = badge(m.state, STATES[m.state] ?? "waiting");
    return [
      ["Model", [name, made("small", m.pair)]],
      ["State", m.reason ? [state, made("small", m.reason)] : [state], m.reason ? "wide" : ""],
      ["Frames/s", number.format(m.fps), "n"],
      ["Bits/element", m.bits == null ? "–" : digits.format(m.bits), "n"],
      ["Answers", whole.format(m.answers), "n"],
    ];
  });
}

function showDevices(devices, known) {
  fillTable("devices", devices, (d) => [
    ["Device", [made("b", d.name)]],
    ["Model", d.model || "–"],
    ["Frames/s", number.format(d.fps), "n"],
    ["Bytes/s", bytes(d.bytes).join(" "), "n"],
    ["Captured/s", d.captured == null ? "–" : number.format(d.captured), "n"],
    ["Skipped", d.skipped == null ? "–" : `${Math.round(d.skipped * 100)} %`, "n"],
    ["Drift", drift(d.drift)],
    ["In spool", d.waiting == null ? "–" : whole.format(d.waiting), "n"],
    ["Refused", whole.format(d.refused), "n"],
    ["Heard", ago(d.silent), "n"],
  ], (d) => (d.silent > SILENT_S ? "old" : ""));
  byId("devices-empty").hidden = devices.length > 0;
  text(byId("devices-note"), known > devices.length ? `the ${devices.length} busiest of ${whole.format(known)}` : "");
}

function showStages(stages) {
  const box = byId("stages");
  const most = Math.max(...stages.map((s) => s.p95 ?? 0), 0.001);
  if (!box.children.length) {
    for (const [word, key] of [["", ""], ["", ""], ["p50", "key first"], ["p95", "key second"]]) {
      box.append(made("span", word, `n head ${key}`));
    }
    for (const stage of stages) {
      const bar = made("span", undefined, "bar");
      bar.append(made("i"), made("i"));
      box.append(made("span", stage.name), bar, made("span", "", "n"), made("span", "", "n"));
    }
  }
  stages.forEach((stage, i) => {
    const [, bar, p50, p95] = [...box.children].slice(4 * i + 4, 4 * i + 8);
    bar.children[0].style.width = `${100 * (stage.p95 ?? 0) / most}%`;
    bar.children[1].style.width = `${100 * (stage.p50 ?? 0) / most}%`;
    text(p50, ms(stage.p50));
    text(p95, ms(stage.p95));
  });
}

function showTiles(s) {
  const all = s.stages[s.stages.length - 1];
  figure("fps", number.format(s.fps), "/s");
  text(byId("fps-note"), `${whole.format(s.answers)} since the start`);
  figure("p50", ms(all.p50), "ms p50");
  text(byId("p95"), `${ms(all.p95)} ms p95`);
  figure("bits", s.bits == null ? "–" : digits.format(s.bits), "bits/element");
  text(byId("bits-note"), s.bits95 == null ? "no frames" : `${digits.format(s.bits95)} p95`);
  figure("in", ...bytes(s.in).map((part, i) => (i ? `${part}/s in` : part)));
  text(byId("out"), `${bytes(s.out).join(" ")}/s out`);
  figure("refused", number.format(s.refused), "/s");
  text(byId("refused-note"), `${number.format(s.remembered)}/s from memory`);
  figure("queued", whole.format(s.queued), "waiting");
  text(byId("load-note"), `${s.running} running, ${s.streams} streams`);
}

function show(s) {
  text(byId("version"), s.version);
  text(byId("uptime"), `up ${duration(s.time - s.started)}${s.ready ? "" : ", not ready"}`);
  showTiles(s);
  showStages(s.stages);
  showModels(s.models);
  showDevices(s.devices, s.known);
  fillLog("refusals", s.refusals, s.time);
  fillLog("events", s.events, s.time);
  if (s.point && (!points.length || s.point.t > points[points.length - 1].t)) {
    points.push(s.point);
    points = points.filter((p) => s.point.t - p.t <= HISTORY_S);
  }
  chartFps.set(points);
  chartLatency.set(points);
}

// ---------------------------------------------------------------- the connection

function status(word, style) {
  const node = byId("status");
  text(node, word);
  node.className = `status ${style}`;
  document.body.classList.toggle("stale", style === "gone");
}

function connect() {
  const source = new EventSource("monitor/events");
  source.addEventListener("history", (event) => { points = JSON.parse(event.data); });
  source.addEventListener("state", (event) => {
    heard = Date.now();
    status("live", "live");
    show(JSON.parse(event.data));
  });
  source.addEventListener("error", () => {
    status("disconnected, connecting again", "gone");
    // A browser gives up after an answer other than 200, such as that of a server which is starting.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  });
}

setInterval(() => {
  if (heard && Date.now() - heard > LOST_MS) status("disconnected, connecting again", "gone");
}, 1000);
connect();
