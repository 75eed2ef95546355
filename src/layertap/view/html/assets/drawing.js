// Small functions that make elements, tables and charts.

function make(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function svg(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function fillTable(table, head, rows, numbers) {
  const row = (cells, kind) => {
    const line = make("tr");
    cells.forEach((cell, at) => line.append(make(kind, visible(String(cell)), numbers.includes(at) ? { class: "number" } : {})));
    return line;
  };
  table.replaceChildren(...(head ? [row(head, "th")] : []), ...rows.map((cells) => row(cells, "td")));
}

// Writes characters that are invisible, or change the direction of text, as their numbers.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
function visible(text) {
  return text.replace(UNSEEN, (char) => `\\u${char.codePointAt(0).toString(16).padStart(4, "0")}`);
}

function chart(place, series, title, log) {
  const width = 720, height = 220, left = 56, right = 12, top = 12, bottom = 44;
  const points = series.flatMap((one) => one.points).filter(([, y]) => Number.isFinite(y) && (!log || y > 0));
  if (!points.length) return place.replaceChildren(make("p", "nothing to draw"));
  const of = (value) => (log ? Math.log10(value) : value);
  const xs = points.map(([x]) => x), ys = points.map(([, y]) => of(y));
  const [x0, x1, y1] = [Math.min(...xs), Math.max(...xs), Math.max(...ys)], y0 = log ? Math.min(...ys) : Math.min(0, ...ys);
  const x = (value) => left + ((value - x0) / Math.max(x1 - x0, 1)) * (width - left - right);
  const y = (value) => height - bottom - ((of(value) - y0) / Math.max(y1 - y0, 1e-12)) * (height - top - bottom);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const share of [0, 0.5, 1]) {
    const value = log ? 10 ** (y0 + share * (y1 - y0)) : y0 + share * (y1 - y0);
    drawing.append(svg("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), stroke: "#d0d7de" }));
    drawing.append(svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, digits(value)));
  }
  for (const value of [...new Set([x0, Math.round((x0 + x1) / 2), x1])])
    drawing.append(svg("text", { x: x(value), y: height - bottom + 16, "text-anchor": value === x0 ? "start" : value === x1 ? "end" : "middle" }, `layer ${value}`));
  series.forEach((one, number) => {
    const color = LINES[number % LINES.length];
    const own = one.points.filter(([, value]) => Number.isFinite(value) && (!log || value > 0));
    drawing.append(svg("polyline", { points: own.map(([at, value]) => `${x(at)},${y(value)}`).join(" "), fill: "none", stroke: color, "stroke-width": 2 }));
    for (const [at, value] of own) {
      const dot = svg("circle", { cx: x(at), cy: y(value), r: one.marked === at ? 6 : 3, fill: color });
      dot.append(svg("title", {}, `${one.name}, layer ${at}: ${digits(value)}`));
      drawing.append(dot);
    }
    const across = left + (number % 5) * 130, down = height - 6 - 14 * (Math.ceil(series.length / 5) - 1 - Math.floor(number / 5));
    drawing.append(svg("rect", { x: across, y: down - 9, width: 10, height: 10, fill: color }));
    drawing.append(svg("text", { x: across + 14, y: down }, one.name));
  });
  place.replaceChildren(drawing);
}

function bySite(read) {
  return sites.map((site) => ({ name: site, points: run.taps.map((tap, at) => [tap, at]).filter(([tap]) => tap.site === site).map(([tap, at]) => [tap.layer, read(tap, at)]) }));
}

// Draws counts as columns, each between two edges, without the empty columns at both ends.
function histogram(place, counts, edges, title) {
  const width = 720, height = 150, left = 56, right = 12, top = 16, bottom = 36;
  const first = counts.findIndex((count) => count > 0), last = counts.findLastIndex((count) => count > 0);
  if (first < 0) return place.replaceChildren(make("p", "nothing to draw"));
  const own = counts.slice(first, last + 1), most = Math.max(...own), each = Math.min(60, (width - left - right) / own.length);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  own.forEach((count, at) => {
    const tall = (count / most) * (height - top - bottom), x = left + at * each, base = height - bottom;
    const bar = svg("rect", { x: x + 1, y: base - tall, width: each - 2, height: tall, fill: LINES[0] });
    bar.append(svg("title", {}, `${digits(edges[first + at])} to ${digits(edges[first + at + 1])}: ${count.toLocaleString("en")} tokens`));
    drawing.append(bar);
    if (each >= 40) drawing.append(svg("text", { x: x + each / 2, y: base - tall - 3, "text-anchor": "middle" }, count.toLocaleString("en", { notation: "compact" })));
  });
  const end = left + own.length * each, step = Math.ceil(44 / each);
  drawing.append(svg("line", { x1: left, x2: end, y1: height - bottom, y2: height - bottom, stroke: "#57606a" }));
  for (let at = 0; at <= own.length; at += step) drawing.append(svg("text", { x: left + at * each, y: height - bottom + 15, "text-anchor": "middle" }, digits(edges[first + at])));
  drawing.append(svg("text", { x: left, y: height - 4 }, "value, doubled from column to column; number of tokens above"));
  place.replaceChildren(drawing);
}
