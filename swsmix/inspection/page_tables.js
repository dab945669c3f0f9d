"use strict";
// The table of the tensors: it sorts, filters, and shows a tensor alone.

const columns = [
  ["tensor", (layer) => layer.name, (layer) => layer.name],
  ["shape", (layer) => layer.shape, (layer) => layer.size],
  ["weights", (layer) => whole(layer.size), (layer) => layer.size],
  ["clusters", (layer) => String(layer.clusters ?? "–"), (layer) => layer.clusters ?? -1],
  ["bits per weight", (layer) => layer.bits?.toFixed(2) ?? "–", (layer) => layer.bits ?? -1],
  ["non-zero", (layer) => percent(layer.nonzero), (layer) => layer.nonzero],
  ["largest share", (layer) => percent(Math.max(...layer.shares)),
    (layer) => Math.max(...layer.shares)],
  ["kurtosis", (layer) => measure("kurtosis", layer.kurtosis), (layer) => rank(layer.kurtosis)],
  ["GG shape", (layer) => measure("gg-shape", layer.ggShape), (layer) => rank(layer.ggShape)],
  [`left by ${page.values}`, (layer) => measure("left", layer.left), (layer) => rank(layer.left)],
  ["outliers", (layer) => whole(layer.outliers), (layer) => layer.outliers],
];

// A measure as text and as a number to sort by; null has none, and "inf" is infinite.
function measure(key, value, sign = "") {
  if (value === null) return "–";
  if (value === "inf") return sign + "∞";
  if (value === "-inf") return "−∞";
  const plus = sign && value >= 0 ? "+" : "";
  if (key === "left" || key === "non-zero") {
    return plus + minus(`${(100 * value).toFixed(key === "left" ? 2 : 1)} %`);
  }
  if (["clusters", "weights", "outliers"].includes(key)) return plus + minus(whole(value));
  return plus + minus(Math.abs(value) < 1e5 ? value.toFixed(2) : value.toPrecision(2));
}
const rank = (value) => value === null || value === "-inf" ? -Infinity
  : value === "inf" ? Infinity : value;

const collator = new Intl.Collator("en", { numeric: true });

function drawHead() {
  const row = make(at("layers").tHead, "tr");
  columns.forEach(([name], i) => {
    const button = make(make(row, "th", { scope: "col", "aria-sort": "none" }), "button",
      { type: "button" }, name);
    button.addEventListener("click", () => {
      const first = i > 0; // names ascend first, numbers descend; a third click undoes it
      const again = state.sort === i;
      if (again && state.down !== first) state.sort = null;
      else [state.sort, state.down] = [i, again ? !first : first];
      drawRows();
    });
  });
  make(row, "th", { scope: "col" }, "shares");
}

function drawRows() {
  const wanted = at("filter").value.trim().toLowerCase();
  const rows = data.layers
    .map((layer, i) => [layer, i])
    .filter(([layer]) => layer.name.toLowerCase().includes(wanted));
  if (state.sort !== null) {
    const key = columns[state.sort][2];
    const sign = state.down ? -1 : 1;
    const compare = (a, b) => typeof a === "string" ? collator.compare(a, b) : Math.sign(a - b) || 0;
    rows.sort(([a], [b]) => sign * compare(key(a), key(b)));
  }
  [...at("layers").tHead.rows[0].cells].slice(0, columns.length).forEach((cell, i) => {
    const order = state.down ? "descending" : "ascending";
    cell.setAttribute("aria-sort", i === state.sort ? order : "none");
  });
  const body = at("layers").tBodies[0];
  body.replaceChildren();
  for (const [layer, i] of rows) {
    const row = make(body, "tr", { "aria-selected": String(i === state.layer) });
    row.dataset.layer = i;
    const name = make(make(row, "td"), "button", { type: "button" });
    layer.name.split(/(?<=\.)/).forEach((part, n) => {
      if (n) make(name, "wbr");
      name.append(part);
    });
    for (const [head, text] of columns.slice(1)) {
      make(row, "td", { "data-head": head }, text(layer));
    }
    drawShares(make(row, "td"), layer);
    row.addEventListener("click", () => {
      show(layer.group, i);
      at("chart").scrollIntoView({ block: "nearest" });
    });
  }
  at("matching").textContent = `${rows.length} of ${number(data.layers.length, "tensor")}`;
}

function drawShares(cell, layer) {
  const title = layer.shares.map((share) => percent(share)).join(", ");
  const svg = make(cell, "svg", { class: "shares", viewBox: "0 0 100 10", role: "img",
    preserveAspectRatio: "none", "aria-label": `shares by centre: ${title}` });
  make(svg, "title", {}, title);
  const { colors } = data.groups[layer.group];
  let left = 0;
  let last = null;
  layer.shares.forEach((share, j) => {
    if (!share) return;
    const gap = colors[j] === last ? Math.min(1, 50 * share) : 0; // between two of one colour
    make(svg, "rect", { x: left + gap, width: 100 * share - gap, y: 0, height: 10, fill: colors[j] });
    left += 100 * share;
    last = colors[j];
  });
}

at("filter").addEventListener("input", drawRows);
