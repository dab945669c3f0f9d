"use strict";
// Several checkpoints: their histograms on the same axes, and a table of differences. Then, as the
// last of the scripts, the start of the page.

const chosen = { row: 0, key: "kurtosis", sort: null, down: true };
const LABELS = { kurtosis: "kurtosis", "gg-shape": "GG shape", left: `left by ${page.values}`,
  bits: "bits per weight", "non-zero": "non-zero", outliers: "outliers", clusters: "clusters",
  weights: "weights" };

function startCompared() {
  at("compared-section").hidden = false;
  page.compared.forEach((row, i) => make(at("row"), "option", { value: i }, row.name));
  for (const [key, label] of Object.entries(LABELS)) make(at("key"), "option", { value: key }, label);
  at("row").addEventListener("change", () => { chosen.row = Number(at("row").value); drawCompared(); });
  at("key").addEventListener("change", () => { chosen.key = at("key").value; drawDifferences(); });
  drawCompared();
  drawDifferences();
}

function drawCompared() {
  const svg = at("compared-chart");
  svg.replaceChildren();
  const row = page.compared[chosen.row];
  const width = Math.max(Math.round(svg.getBoundingClientRect().width), 240);
  const each = 110;
  const [left, right, high] = [width < 600 ? 50 : 72, width - 15, 74];
  const height = files.length * each + 40;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  const totals = row.counts.map((counts) => counts?.reduce((a, b) => a + b, 0) ?? 0);
  const top = Math.max(...row.counts.map((counts, i) => counts ? Math.max(...counts) / totals[i] : 0));
  const floor = 0.4 / Math.max(...totals);
  const up = (share) => high * Math.log(share / floor) / Math.log(2 * top / floor);
  const x = (w) => left + ((w - row.low) / (row.high - row.low)) * (right - left);
  files.forEach((file, i) => {
    const ground = i * each + 22 + high;
    make(svg, "text", { x: left, y: ground - high - 8, class: "name" }, file.checkpoint);
    make(svg, "path", { class: "axis", d: `M${left},${ground}H${right}` });
    const counts = row.counts[i];
    if (!counts) {
      make(svg, "text", { x: left + 6, y: ground - 8 }, "has no such tensor");
      return;
    }
    const step = (row.high - row.low) / counts.length;
    const [mean, far] = row.far[i];
    counts.forEach((count, b) => {
      if (!count) return;
      const [from, to] = [row.low + b * step, row.low + (b + 1) * step];
      const share = up(count / totals[i]);
      const bar = make(svg, "rect", { class: "share", x: x(from), width: Math.max(x(to) - x(from), 0.8),
        y: ground - share, height: share });
      make(bar, "title", {}, `${whole(count)} (${percent(count / totals[i])})`);
      if (Math.min(Math.abs(from - mean), Math.abs(to - mean)) > far) {
        make(svg, "circle", { class: "outlier", r: 5, cx: x((from + to) / 2), cy: ground - share });
      }
    });
    const lowest = Math.ceil(Math.log10(floor));
    for (let power = lowest; 10 ** power <= top; power += Math.max(1, Math.ceil(-lowest / 3))) {
      const y = ground - up(10 ** power);
      make(svg, "path", { class: "axis", d: `M${left - 4},${y}h4` });
      make(svg, "text", { x: left - 7, y: y + 4, "text-anchor": "end" },
        power < -3 ? minus(`1e${power}`) : `${+(100 * 10 ** power).toPrecision(1)} %`);
    }
  });
  const along = ticks(row.low, row.high, width < 600 ? 6 : 8);
  const digits = digitsFor(along[1] - along[0], row.low, row.high);
  const ground = (files.length - 1) * each + 22 + high;
  for (const value of along) {
    make(svg, "path", { class: "axis", d: `M${x(value)},${ground}v4` });
    make(svg, "text", { x: x(value), y: ground + 17, "text-anchor": "middle" }, short(value, digits));
  }
  make(svg, "text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" },
    "weight; bars: share of the weights, logarithmic");
}

function drawDifferences() {
  const { key } = chosen;
  const table = at("compared");
  table.tHead.replaceChildren();
  const cells = [["tensor", (row) => row.name, (row) => row.name]];
  files.forEach((file, i) => cells.push([file.checkpoint,
    (row) => row.values[i] ? measure(key, row.values[i][key]) : "not there",
    (row) => rank(row.values[i]?.[key] ?? null)]));
  files.forEach((file, i) => {
    if (i) cells.push([`${file.checkpoint}: change`,
      (row) => row.values[i] && i !== row.reference[key] ? measure(key, row.differences[i][key], "+") : "–",
      (row) => i === row.reference[key] ? -Infinity : rank(row.differences[i][key])]);
  });
  const head = make(table.tHead, "tr");
  cells.forEach(([name], i) => {
    const order = i !== chosen.sort ? "none" : chosen.down ? "descending" : "ascending";
    const button = make(make(head, "th", { scope: "col", "aria-sort": order }), "button",
      { type: "button" }, name);
    button.addEventListener("click", () => {
      const again = chosen.sort === i;
      [chosen.sort, chosen.down] = [i, again ? !chosen.down : i > 0];
      drawDifferences();
    });
  });
  const body = table.tBodies[0];
  body.replaceChildren();
  const rows = page.compared.map((row, i) => [row, i]);
  if (chosen.sort !== null) {
    const by = cells[chosen.sort][2];
    const sign = chosen.down ? -1 : 1;
    const order = (a, b) => typeof a === "string" ? collator.compare(a, b) : Math.sign(a - b) || 0;
    const [whole, ...tensors] = rows; // all weights stay above
    rows.splice(0, rows.length, whole, ...tensors.sort(([a], [b]) => sign * order(by(a), by(b))));
  }
  for (const [row, number] of rows) {
    const line = make(body, "tr");
    const button = make(make(line, "td"), "button", { type: "button" }, row.name);
    button.addEventListener("click", () => {
      chosen.row = number;
      at("row").value = number;
      drawCompared();
      at("compared-chart").scrollIntoView({ block: "nearest" });
    });
    for (const [name, text] of cells.slice(1)) make(line, "td", { "data-head": name }, text(row));
  }
}

// -- start ------------------------------------------------------------------------------------

function open(file) {
  data = files[file];
  at("summary").replaceChildren();
  for (const [name, value] of Object.entries(data.summary)) {
    const entry = make(at("summary"), "div");
    make(entry, "dt", {}, name);
    make(entry, "dd", {}, value);
  }
  at("group").replaceChildren();
  data.groups.forEach((group, i) => make(at("group"), "option", { value: i }, group.name));
  at("group-label").hidden = data.groups.length < 2;
  const leftOut = Object.entries(data.leftOut);
  const list = at("left-out").querySelector("ul");
  list.replaceChildren();
  at("left-out").hidden = leftOut.length === 0;
  at("left-out").querySelector("summary").textContent = `${number(leftOut.length, "tensor")} left out`;
  for (const [name, why] of leftOut) make(list, "li", {}, `${name}: ${why}`);
  state.layer = null;
  drawRows();
  show(0, null);
}

drawHead();
files.forEach((file, i) => make(at("checkpoint"), "option", { value: i }, file.checkpoint ?? ""));
at("checkpoint-label").hidden = files.length < 2;
at("checkpoint").addEventListener("change", () => open(Number(at("checkpoint").value)));
if (files.length > 1) startCompared();
open(0);
new ResizeObserver(() => {
  if (Math.round(at("chart").getBoundingClientRect().width) !== box.width) redraw();
}).observe(at("chart"));
function redraw() {
  draw();
  if (files.length > 1) drawCompared();
}
