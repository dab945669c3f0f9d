"use strict";
// A histogram to step through, and a slider. With the other scripts, all that the page runs: no
// library, no network.

const page = JSON.parse(document.getElementById("data").textContent);
const files = [page, ...(page.others ?? [])];
for (const group of files.flatMap((file) => file.groups)) { // near zero: grey, which a dark page mutes
  group.colors = group.colors.map((color) => color === page.neutral ? "var(--neutral)" : color);
}
let data = page; // of the checkpoint that is shown
const at = (id) => document.getElementById(id);
const state = { group: 0, layer: null, frame: 0, bin: null, sort: null, down: false, timer: null };

function make(parent, tag, attributes = {}, text = null) {
  const space = parent.namespaceURI === "http://www.w3.org/2000/svg" || tag === "svg";
  const node = space
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null) node.textContent = text;
  parent.appendChild(node);
  return node;
}

const minus = (text) => text.replace(/-/g, "−");
const short = (x, digits = 3) => minus(Number(x.toPrecision(digits)).toString());
// Digits that tell numbers apart which differ by `gap`.
const digitsFor = (gap, ...values) => Math.min(17, Math.max(3,
  1 + Math.ceil(Math.log10(Math.max(...values.map(Math.abs), gap) / gap))));
const compact = (n) => {
  const [size, unit] = [[1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([s]) => n >= s) ?? [1, ""];
  return `${short(n / size)}${unit}`;
};
const whole = (n) => n.toLocaleString("en-US");
const number = (n, noun) => `${whole(n)} ${noun}${n === 1 ? "" : "s"}`;
const percent = (x) => `${(100 * x).toFixed(1)} %`;

// -- the mixture ------------------------------------------------------------------------------

// The normal distribution function (Abramowitz & Stegun 7.1.26, error below 1e-7).
function ndtr(z) {
  const t = 1 / (1 + 0.3275911 * Math.abs(z) * Math.SQRT1_2);
  const a = [0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429];
  const tail = 0.5 * a.reduceRight((sum, c) => (sum + c) * t, 0) * Math.exp((-z * z) / 2);
  return z < 0 ? tail : 1 - tail;
}

// The share of each component that falls into a bin, scaled by mixing.
function massIn(frame, low, high) {
  return frame.mean.map((mean, j) => {
    const [a, b] = [(low - mean) / frame.std[j], (high - mean) / frame.std[j]];
    return frame.mixing[j] * (a > 0 ? ndtr(-a) - ndtr(-b) : ndtr(b) - ndtr(a));
  });
}

// gamma_j(w), in log space: exact in the tails too.
function responsibilities(frame, w) {
  const logs = frame.mean.map((mean, j) => {
    const z = (w - mean) / frame.std[j];
    return Math.log(frame.mixing[j]) - Math.log(frame.std[j]) - 0.5 * z * z;
  });
  const top = Math.max(...logs);
  const parts = logs.map((value) => Math.exp(value - top));
  const total = parts.reduce((a, b) => a + b, 0);
  return parts.map((part) => part / total);
}

// -- what is shown ----------------------------------------------------------------------------

function current() {
  const group = data.groups[state.group];
  if (state.layer === null) {
    const far = state.frame === group.frames.length - 1 ? group.far : null;
    return { group, frame: group.frames[state.frame], size: group.size, far };
  }
  const layer = data.layers[state.layer];
  return { group, frame: { ...group.present, counts: layer.counts, claimed: layer.claimed },
    size: layer.size, far: [layer.mean, 6 * layer.std] };
}

function range(group) {
  const own = state.layer === null ? group.frames : [group.present];
  const same = files.length > 1 ? files.flatMap((file) => file.groups.map((g) => g.present)) : [];
  const frames = [...own, ...same]; // checkpoints that are compared have the same axis
  const low = Math.min(...frames.map((f) => f.low));
  const high = Math.max(...frames.map((f) => f.high));
  // A centre may lie a little beyond the weights that it owns.
  const near = (mean) => mean > low - 0.1 * (high - low) && mean < high + 0.1 * (high - low);
  const owns = owners(group.present);
  const centres = group.present.mean.filter((mean, j) => owns[j] && near(mean));
  return [Math.min(low, ...centres), Math.max(high, ...centres)];
}

function ticks(low, high, most) {
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((s) => s * power >= raw);
  const places = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) places.push(i * step);
  return places;
}

// In pixels of the screen: a narrow window has a narrow chart, with text of the same size.
const box = { left: 72, right: 945, top: 12, bottom: 300, width: 960 };
let bins = [];

function measureChart() {
  const width = Math.max(Math.round(at("chart").getBoundingClientRect().width), 240);
  Object.assign(box, { width, left: width < 600 ? 50 : 72, right: width - 15 });
  at("chart").setAttribute("viewBox", `0 0 ${width} 340`);
  at("chart").setAttribute("height", "340");
}

// A component owns weights where it is the most responsible for one. Colours are of owners alone.
function owners(frame) {
  return frame.mean.map((_, j) => frame.mixing[j] > 0 && (!frame.claimed || frame.claimed[j] > 0));
}

function draw() {
  measureChart();
  const { group, frame, size, far } = current();
  const chart = at("chart");
  chart.replaceChildren();
  const owns = owners(frame);
  const color = (j) => owns[j] ? group.colors[j] : "var(--idle)";
  at("idle-note").hidden = frame.mean.every((_, j) => owns[j] || frame.mixing[j] === 0);
  const log = at("log").checked;
  const [low, high] = range(group);
  const step = (frame.high - frame.low) / frame.counts.length;
  const x = (w) => box.left + ((w - low) / (high - low)) * (box.right - box.left);
  const edge = (i) => frame.low + i * step;
  // The numbers that the mixture expects in bins of the same width, over the whole axis.
  const [before, after] = [Math.floor((low - frame.low) / step), Math.ceil((high - frame.low) / step)];
  const places = Array.from({ length: after - before }, (_, i) => before + i);
  const masses = places.map((i) => massIn(frame, edge(i), edge(i + 1)));
  const totals = masses.map((mass) => size * mass.reduce((a, b) => a + b, 0));
  const top = Math.max(...frame.counts, ...totals, 1) * (log ? 2 : 1.05);
  // Low enough for the curve of few weights.
  const floor = log ? Math.min(0.5, Math.max(0.01 * Math.max(...totals), 1e-6)) : 0;
  const height = (n) => log // below the axis, and so clipped, where a curve is below the floor
    ? Math.log(Math.max(n, floor / 10) / floor) / Math.log(top / floor)
    : n / top;
  const y = (n) => box.bottom - height(n) * (box.bottom - box.top);

  bins = frame.counts.map((count, i) => {
    const gamma = responsibilities(frame, edge(i) + step / 2);
    const own = gamma.map((value, j) => owns[j] ? value : -1);
    const component = own.indexOf(Math.max(...own));
    return { low: edge(i), high: edge(i + 1), count, component, gamma: gamma[component],
      left: x(edge(i)), width: x(edge(i + 1)) - x(edge(i)) };
  });
  for (const bin of bins) {
    if (!bin.count) continue;
    make(chart, "rect", { class: "bar", x: bin.left, width: Math.max(bin.width, 0.8), y: y(bin.count),
      height: box.bottom - y(bin.count), fill: group.colors[bin.component] });
  }
  const curve = (values) => values
    .map((value, i) => `${x(edge(places[i]) + step / 2).toFixed(2)},${y(value).toFixed(2)}`)
    .join(" ");
  const clip = make(chart, "svg", { width: box.width, height: box.bottom });
  frame.mean.forEach((_, j) => {
    if (frame.mixing[j] === 0) return;
    make(clip, "polyline", { class: owns[j] ? "component" : "component idle", stroke: color(j),
      points: curve(masses.map((mass) => size * mass[j])) });
  });
  make(clip, "polyline", { class: "total", points: curve(totals) });
  frame.mean.forEach((mean, j) => {
    if (!owns[j] || mean < low || mean > high) return;
    const [cx, cy] = [x(mean), box.top - 2];
    make(chart, "path", { class: "centre", fill: group.colors[j],
      d: `M${cx - 5},${cy - 8}h10L${cx},${cy}z` });
  });
  for (const bin of bins) {
    const nearest = far && Math.min(Math.abs(bin.low - far[0]), Math.abs(bin.high - far[0]));
    if (!bin.count || !far || nearest <= far[1]) continue;
    make(chart, "circle", { class: "outlier", r: 5, cx: bin.left + bin.width / 2, cy: y(bin.count) });
  }
  at("rings").hidden = chart.querySelector(".outlier") === null;
  make(chart, "path", { class: "axis", d: `M${box.left},${box.bottom}H${box.right}` });
  const along = ticks(low, high, box.width < 600 ? 6 : 8);
  const digits = digitsFor(along[1] - along[0], low, high);
  for (const value of along) {
    make(chart, "path", { class: "axis", d: `M${x(value)},${box.bottom}v4` });
    make(chart, "text", { x: x(value), y: box.bottom + 17, "text-anchor": "middle" },
      short(value, digits));
  }
  const marks = log
    ? Array.from({ length: Math.floor(Math.log10(top / floor)) + 1 },
      (_, i) => 10 ** (Math.ceil(Math.log10(floor)) + i)).filter((n) => n <= top)
    : ticks(0, top, 5);
  for (const n of marks) {
    make(chart, "path", { class: "axis", d: `M${box.left - 4},${y(n)}h4` });
    make(chart, "text", { x: box.left - 8, y: y(n) + 4, "text-anchor": "end" }, compact(n));
  }
  make(chart, "text", { x: (box.left + box.right) / 2, y: 334, "text-anchor": "middle" }, "weight");
  make(chart, "text", { x: 14, y: 156, transform: "rotate(-90 14 156)", "text-anchor": "middle" },
    "weights / bin");
  point(state.bin === null ? null : Math.min(state.bin, bins.length - 1));
  drawColors(group, frame, owns);
  drawComponents(group, frame, size);
}

// The means of each colour, for components of about one value share one.
function drawColors(group, frame, owns) {
  const line = at("colors");
  line.replaceChildren();
  const means = new Map();
  const order = frame.mean.map((_, j) => j).filter((j) => owns[j])
    .sort((a, b) => frame.mean[a] - frame.mean[b]);
  for (const j of order) {
    means.set(group.colors[j], [...(means.get(group.colors[j]) ?? []), frame.mean[j]]);
  }
  const digits = meanDigits(frame);
  for (const [color, values] of means) {
    const entry = make(line, "span");
    make(entry, "span", { class: "swatch" }).style.background = color;
    const [first, last] = [short(values[0], digits), short(values.at(-1), digits)];
    const ends = first === last ? first : `${first} to ${last}`;
    entry.append(values.length > 1 ? ` ${ends} (${values.length} components)` : ` ${first}`);
  }
}

function meanDigits(frame) {
  const sorted = [...frame.mean].sort((a, b) => a - b);
  const gaps = sorted.slice(1).map((mean, i) => mean - sorted[i])
    .filter((gap) => gap > 1e-3 * (sorted.at(-1) - sorted[0]));
  return gaps.length ? Math.min(9, digitsFor(Math.min(...gaps), ...frame.mean)) : 3;
}

function drawComponents(group, frame, size) {
  const body = at("components").tBodies[0];
  body.replaceChildren();
  const digits = meanDigits(frame);
  const owns = owners(frame);
  frame.mean.forEach((mean, j) => {
    const row = make(body, "tr");
    const swatch = make(make(row, "td"), "span", { class: "swatch" });
    if (owns[j]) swatch.style.background = group.colors[j];
    else swatch.classList.add("idle");
    make(row, "td", {}, String(j + 1));
    make(row, "td", {}, short(mean, digits));
    for (const value of [frame.std[j], frame.mixing[j]]) make(row, "td", {}, short(value));
    const held = frame.claimed?.[j];
    make(row, "td", {}, held === undefined ? "" : whole(held));
    make(row, "td", {}, held === undefined ? "" : percent(held / size));
  });
}

// -- hover and keys ---------------------------------------------------------------------------

function point(i) {
  state.bin = i;
  at("chart").querySelector(".cursor")?.remove();
  if (i === null) return;
  const bin = bins[i];
  const { frame, size } = current();
  make(at("chart"), "rect", { class: "cursor", x: bin.left, width: Math.max(bin.width, 1),
    y: box.top, height: box.bottom - box.top });
  const digits = Math.max(4, digitsFor(bin.high - bin.low, bin.low, bin.high));
  at("readout").textContent =
    `weights from ${minus(bin.low.toPrecision(digits))} to ` +
    `${minus(bin.high.toPrecision(digits))}: ` +
    `${whole(bin.count)} (${percent(bin.count / size)}); component ${bin.component + 1} of ` +
    `${frame.mean.length} (mean ${short(frame.mean[bin.component], meanDigits(frame))}, std ` +
    `${short(frame.std[bin.component])}) with responsibility ${bin.gamma.toFixed(3)}`;
}

at("chart").addEventListener("pointermove", (event) => {
  const area = at("chart").getBoundingClientRect();
  const where = ((event.clientX - area.left) / area.width) * box.width;
  const i = bins.findIndex((bin) => where >= bin.left && where < bin.left + bin.width);
  if (i >= 0) point(i);
});
at("chart").addEventListener("keydown", (event) => {
  const last = bins.length - 1;
  const from = state.bin ?? (event.key === "ArrowLeft" ? bins.length : -1);
  const next = { ArrowLeft: Math.max(from - 1, 0), ArrowRight: Math.min(from + 1, last),
    Home: 0, End: last }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  point(next);
});

// -- time -------------------------------------------------------------------------------------

function moveTo(frame) {
  const group = data.groups[state.group];
  state.frame = frame;
  at("slider").value = frame;
  at("moment").textContent = group.frames[frame].label;
  at("slider").setAttribute("aria-valuetext", group.frames[frame].label);
  draw();
}

function stop() {
  clearInterval(state.timer);
  state.timer = null;
  at("play").textContent = "play";
}

at("slider").addEventListener("input", () => { stop(); moveTo(Number(at("slider").value)); });
at("play").addEventListener("click", () => {
  if (state.timer !== null) return stop();
  const last = data.groups[state.group].frames.length - 1;
  if (state.frame === last) moveTo(0);
  at("play").textContent = "stop";
  state.timer = setInterval(() => {
    if (state.frame >= last) return stop();
    moveTo(state.frame + 1);
  }, 80);
});
at("log").addEventListener("change", draw);

// -- which weights ----------------------------------------------------------------------------

function show(group, layer) {
  stop();
  state.group = group;
  state.layer = layer;
  state.bin = null;
  at("group").value = group;
  const { frames } = data.groups[group];
  at("slider").max = frames.length - 1;
  at("time").hidden = frames.length < 2 || layer !== null;
  at("whole").hidden = layer === null;
  at("shown").textContent = layer === null
    ? `${number(data.groups[group].size, "weight")}; ${data.groups[group].origin}; ${data.groups[group].clustering}`
    : `${data.layers[layer].name} alone`;
  at("findings").replaceChildren();
  for (const found of data.groups[group].findings) make(at("findings"), "li", {}, found);
  for (const row of at("layers").tBodies[0].rows) {
    row.setAttribute("aria-selected", String(Number(row.dataset.layer) === layer));
  }
  moveTo(frames.length - 1);
}

at("group").addEventListener("change", () => show(Number(at("group").value), null));
at("whole").addEventListener("click", () => { show(state.group, null); at("chart").focus(); });
