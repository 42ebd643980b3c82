// A line chart as SVG: lines over the last seconds, a grid with round numbers, and a cross-hair that says the values.
// It sets text as text, and attributes; it never makes markup out of data.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 44, RIGHT = 6, TOP = 8, BOTTOM = 20;

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (parent) parent.append(made);
  return made;
}

// The least of 1, 2, 5, 10, … that is at least `value`.
function round(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value * 0.9999);
}

const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

export class Chart {
  // box: where it is drawn. lines: [{ key, name, style }], style "first" or "second". seconds: how much it shows.
  constructor(box, lines, seconds, unit) {
    this.box = box;
    this.lines = lines;
    this.seconds = seconds;
    this.unit = unit;
    this.points = [];
    this.svg = element("svg", { role: "img" });
    this.tip = document.createElement("div");
    this.tip.className = "tip";
    this.tip.hidden = true;
    box.append(this.svg, this.tip);
    if (lines.length > 1) {
      const legend = document.createElement("span");
      legend.className = "legend";
      for (const line of lines) {
        const name = document.createElement("span");
        name.className = line.style;
        name.textContent = line.name;
        legend.append(name);
      }
      box.parentElement.querySelector("figcaption").append(legend);
    }
    box.addEventListener("pointermove", (event) => this.point(event.clientX - box.getBoundingClientRect().left));
    box.addEventListener("pointerleave", () => { this.at = null; this.draw(); });
    new ResizeObserver(() => this.draw()).observe(box);
  }

  set(points) {
    this.points = points;
    this.draw();
  }

  point(x) {
    this.at = x;
    this.draw();
  }

  draw() {
    const width = this.box.clientWidth, height = this.box.clientHeight;
    if (!width || !height) return;
    const { svg, points, lines } = this;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const end = points.length ? points[points.length - 1].t : 0;
    const values = points.flatMap((p) => lines.map((line) => p[line.key] ?? 0));
    const step = round(Math.max(...values, 0) / 3 || 1 / 3);
    const top = step * Math.max(1, Math.ceil(Math.max(...values, 0) / step));
    const x = (t) => width - RIGHT - (width - LEFT - RIGHT) * (end - t) / this.seconds;
    const y = (v) => height - BOTTOM - (height - TOP - BOTTOM) * v / top;
    for (let v = 0; v <= top * 1.0001; v += step) {
      element("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(v), y2: y(v) }, svg);
      const label = element("text", { class: "axis", x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, svg);
      label.textContent = short.format(v);
    }
    const minutes = this.seconds / 60, stride = (width - LEFT - RIGHT) / minutes < 60 ? 2 : 1;
    for (let minute = 0; minute <= minutes; minute += minute + stride > minutes - stride ? minutes - minute || 1 : stride) {
      const label = element("text", {
        class: "axis", x: x(end - minute * 60), y: height - 4,
        "text-anchor": minute === 0 ? "end" : minute === minutes ? "start" : "middle",
      }, svg);
      label.textContent = minute ? `−${minute} min` : "now";
    }
    for (const line of lines) {
      let path = "", pen = "M";
      for (const p of points) {
        if (p[line.key] == null || end - p.t > this.seconds) { pen = "M"; continue; }
        path += `${pen}${x(p.t).toFixed(1)} ${y(p[line.key]).toFixed(1)}`;
        pen = "L";
      }
      element("path", { class: line.style, d: path }, svg);
    }
    const last = points[points.length - 1];
    const said = last ? lines.map((line) => `${line.name} ${this.say(last[line.key])}`).join(", ") : "no data yet";
    svg.setAttribute("aria-label", said);
    this.drawCross(width, height, x, end);
  }

  drawCross(width, height, x, end) {
    const inside = this.at != null && this.points.length > 0;
    this.tip.hidden = !inside;
    if (!inside) return;
    const nearest = this.points.reduce((a, b) => Math.abs(x(a.t) - this.at) <= Math.abs(x(b.t) - this.at) ? a : b);
    const at = x(nearest.t);
    element("line", { class: "cross", x1: at, x2: at, y1: TOP, y2: height - BOTTOM }, this.svg);
    const values = this.lines.map((line) => `${line.name} ${this.say(nearest[line.key])}`).join("  ");
    this.tip.textContent = `${values}, ${Math.round(end - nearest.t)} s ago`;
    const left = at > width / 2 ? at - this.tip.offsetWidth - 8 : at + 8;
    this.tip.style.left = `${Math.max(0, left)}px`;
  }

  say(value) {
    return value == null ? "–" : `${short.format(value)}${this.unit}`;
  }
}
