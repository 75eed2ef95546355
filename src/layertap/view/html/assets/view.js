"use strict";
// The page of a run. Every text of the run goes through textContent; nothing is ever markup.

const ARC = ["#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00", "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25"];
const RISING = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const AROUND_ZERO = ["#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b"];
const LINES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31", "#7f7f7f"];
const CELL = 22;

const element = (id) => document.getElementById(id);
const run = JSON.parse(element("run").textContent);
const samples = JSON.parse(element("samples").textContent);
const sites = [...new Set(run.taps.map((tap) => tap.site))];
const opened = new Map();
let shown = null; // the sample that is shown, unpacked
let state = { tab: "run", sample: 0, site: sites[0], layer: 0, value: run.names[0], token: -1, undo: false, span: "layer", order: "place", search: "" };

// ---- numbers ------------------------------------------------------------------------------------

function decode(code) {
  if (code === 0) return 0;
  if (code === 65535) return NaN;
  if (code >= 65533) return code === 65534 ? Infinity : -Infinity;
  const number = code - 1, rest = number >> 1;
  const size = Number(`${(rest % 900) + 100}e${Math.floor(rest / 900) - 20}`);
  return number & 1 ? -size : size;
}

function digits(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

function quantile(sorted, share) {
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : NaN;
}

// ---- colours ------------------------------------------------------------------------------------

function mix(stops, share) {
  const place = Math.max(0, Math.min(1, share)) * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(place));
  const part = (hex, at) => parseInt(hex.slice(at, at + 2), 16);
  const channel = (at) => Math.round(part(stops[low], at) + (place - low) * (part(stops[low + 1], at) - part(stops[low], at)));
  return `rgb(${channel(1)}, ${channel(3)}, ${channel(5)})`;
}

function aroundZero(name) {
  return name === "cosine" || name.startsWith("channel");
}

// From values to colours: what is signed around zero, what is a size by its logarithm. The outermost
// two in a hundred are drawn as the ends, or a few sinks would leave one colour for all others.
function scaleOf(values) {
  const known = values.filter(Number.isFinite).sort((a, b) => a - b);
  if (aroundZero(state.value)) {
    const most = state.value === "cosine" ? 1 : Math.max(Math.abs(quantile(known, 0.02)), Math.abs(quantile(known, 0.98)), 1e-12);
    return { low: -most, high: most, color: (value) => (Number.isFinite(value) ? mix(AROUND_ZERO, (value / most + 1) / 2) : "#ffffff") };
  }
  if (state.value.startsWith("feature")) {
    const high = Math.max(quantile(known.filter((value) => value > 0), 0.98) || 0, 1e-12);
    return { low: 0, high, color: (value) => (Number.isNaN(value) ? "#ffffff" : mix(RISING, value / high)) };
  }
  const low = Math.max(quantile(known, 0.02), 1e-12), high = Math.max(quantile(known, 0.98), low * 1.0001);
  const share = (value) => Math.log(Math.max(value, 1e-12) / low) / Math.log(high / low);
  return { low, high, color: (value) => (Number.isNaN(value) ? "#ffffff" : mix(RISING, share(value))) };
}

function inkOn(color) {
  const [red, green, blue] = color.startsWith("#") ? [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)) : color.match(/\d+/g).map(Number);
  const linear = [red, green, blue].map((it) => (it / 255 <= 0.03928 ? it / 255 / 12.92 : ((it / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18 ? "#000000" : "#ffffff";
}

// ---- small makers -------------------------------------------------------------------------------

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

// What cannot be seen, or turns the direction of what follows, is written as its number.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
function visible(text) {
  return text.replace(UNSEEN, (char) => `\\u${char.codePointAt(0).toString(16).padStart(4, "0")}`);
}

// ---- charts -------------------------------------------------------------------------------------

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

// ---- the run ------------------------------------------------------------------------------------

function drawRun() {
  element("path").textContent = visible(run.path);
  document.title = `Layertap: ${visible(run.path)}`;
  fillTable(element("facts"), null, run.facts, []);
  chart(element("norm-chart"), [...bySite((tap) => tap.mean_norm ?? NaN)], "Mean norm by layer", true);
  chart(element("ratio-chart"), bySite((tap) => tap.mean_over_std ?? NaN), "Norm of the mean over the standard deviation, by layer", false);
  const percent = (share) => (share === null || share === undefined ? "–" : `${digits(100 * share)} %`);
  if (run.shares) {
    const of = (name, list) => bySite((_, at) => 100 * list[at]).map((one) => ({ ...one, name: sites.length > 1 ? `${name}, ${one.name}` : name }));
    chart(element("share-chart"), [...of("sinks", run.shares.sinks), ...of("prefix", run.shares.prefix)], "Percent of the squared norm in sinks and in the prefix", false);
    element("share-note").textContent =
      `Percent of the squared norm. A sink has over 10 times the usual norm of its sample. The prefix is ${run.shares.prefix_tokens} tokens, which all samples begin with.`;
  } else element("share-note").textContent = "Norms lie apart from activations in safetensors alone; layertap stats --norms all reads them here too.";
  const roles = Object.entries(run.roles ?? {}), all = roles.reduce((sum, [, count]) => sum + count, 0);
  element("roles").hidden = !roles.length;
  fillTable(element("role-table"), ["role", "tokens", "share"], roles.map(([role, count]) => [role, count.toLocaleString("en"), percent(count / all)]), [1, 2]);
  const proof = run.certificate;
  element("certificate").hidden = !proof;
  if (proof) {
    element("certificate-note").textContent = `The first ${proof.prompts} prompts (${proof.tokens} tokens) ran in float32 too.`;
    fillTable(element("certificate-table"), ["site", "layer", "worst cosine", "mean relative error", "worst"],
      run.taps.map((tap, at) => [tap.site, tap.layer, ...(proof.taps[at] ?? [null, null, null]).map((it, which) => (which ? digits(it) : it === null ? "–" : it.toFixed(6)))]), [1, 2, 3, 4]);
  }
  fillTable(element("tap-table"), ["site", "layer", "width", "mean norm", "largest norm", "|mean|/|std|", "in sinks", "in prefix"],
    run.taps.map((tap, at) => [tap.site, tap.layer, tap.width, digits(tap.mean_norm), digits(tap.max_norm), digits(tap.mean_over_std),
      percent(run.shares?.sinks[at]), percent(run.shares?.prefix[at])]), [1, 2, 3, 4, 5, 6, 7]);
}

// ---- a sample -----------------------------------------------------------------------------------

async function unpack(number) {
  if (!opened.has(number)) {
    const bytes = Uint8Array.from(atob(element(`sample-${number}`).textContent), (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const buffer = await new Response(stream).arrayBuffer();
    const length = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    opened.set(number, { ...header, codes: new Uint16Array(buffer, 4 + length) });
    if (opened.size > 4) opened.delete(opened.keys().next().value);
  }
  return opened.get(number);
}

const layersOf = (site) => run.taps.filter((tap) => tap.site === site).map((tap) => tap.layer);
const tapAt = (site, layer) => run.taps.findIndex((tap) => tap.site === site && tap.layer === layer);

function valuesAt(tap, name = state.value) {
  const begin = (run.names.indexOf(name) * run.taps.length + tap) * shown.tokens;
  return Array.from(shown.codes.subarray(begin, begin + shown.tokens), decode);
}

function currentTap() {
  return tapAt(state.site, layersOf(state.site)[state.layer]);
}

function currentScale() {
  const taps = state.span === "all" ? layersOf(state.site).map((layer) => tapAt(state.site, layer)) : [currentTap()];
  return scaleOf(taps.flatMap((tap) => valuesAt(tap)));
}

function textOf(token) {
  return shown.texts ? shown.texts[shown.text_of[token]] : `[${shown.ids[token]}]`;
}

function drawSample() {
  const values = valuesAt(currentTap()), scale = currentScale();
  drawLegend(scale);
  drawAbout();
  drawGrids(values, scale);
  drawPrompt(values, scale);
  drawDetail();
  if (element("table-details").open) drawTable();
}

function drawLegend(scale) {
  const stops = aroundZero(state.value) ? AROUND_ZERO : RISING;
  const bar = make("span", undefined, { class: "bar" });
  bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
  element("legend").replaceChildren(make("span", digits(scale.low)), bar, make("span", `${digits(scale.high)}  ${state.value}`));
}

function drawAbout() {
  const origin = shown.origin, parts = [`task ${visible(shown.task)}, sample ${shown.sample_idx}`, `${shown.tokens} tokens`];
  if (shown.source) parts.push(visible(shown.source));
  if (origin.test_index !== null && origin.test_index !== undefined) parts.push(`test input ${origin.test_index + 1}, prediction ${origin.prediction}`);
  if (origin.augmentation) {
    const { flip, rotations, colors } = origin.augmentation;
    parts.push(`shown ${flip ? "mirrored, " : ""}turned by ${90 * rotations}°, colours ${colors.join("")}${state.undo ? " (undone here)" : ""}`);
  }
  if (shown.left_out) parts.push(`${shown.left_out} tokens at its end did not fit on this page (--max_mb)`);
  if (!shown.texts) parts.push("no tokenizer was at hand, so tokens are numbers");
  element("about").textContent = parts.join("; ");
}

// ---- grids --------------------------------------------------------------------------------------

const turned = (rows) => rows[0].map((_, col) => rows.map((row) => row[col]).reverse());

// The grid of an ARC prompt as its task has it: the inverse of what made the prompt.
function undone(rows, augmentation) {
  let made = rows;
  for (let turn = 0; turn < (4 - augmentation.rotations) % 4; turn++) made = turned(made);
  return augmentation.flip ? made.map((row) => [...row].reverse()) : made;
}

function gridToDraw(grid) {
  const augmentation = shown.origin.augmentation;
  if (!state.undo || !augmentation) return grid.cells;
  return { colours: undone(grid.cells.colours, augmentation).map((row) => row.map((it) => augmentation.colors.indexOf(it))), tokens: undone(grid.cells.tokens, augmentation) };
}

function pairsToDraw() {
  const pairs = new Map();
  for (const grid of shown.grids) pairs.set(grid.pair, [...(pairs.get(grid.pair) ?? []), grid]);
  const order = shown.origin.augmentation?.train_order;
  const place = (pair) => (pair === "test" ? Infinity : state.undo && order ? order[pair] : pair);
  return [...pairs].sort(([one], [other]) => place(one) - place(other)).map(([pair, grids]) => [pair === "test" ? "test" : `example ${place(pair) + 1}`, grids]);
}

function drawGrids(values, scale) {
  element("grids-section").hidden = !shown.grids.length;
  element("columns").className = shown.grids.length ? "" : "one";
  element("undo").disabled = !shown.origin.augmentation;
  const rows = pairsToDraw().map(([name, grids]) => {
    const row = make("div", undefined, { class: "pair" });
    for (const grid of grids) row.append(grid.cells ? drawGrid(grid, name, values, scale) : make("p", `${name} ${grid.side}: not all of its cells are here`));
    return row;
  });
  element("grids").replaceChildren(...rows);
}

function drawGrid(grid, name, values, scale) {
  const { colours, tokens } = gridToDraw(grid), height = colours.length, width = colours[0].length;
  const title = `${name} ${grid.side}, ${height} rows, ${width} columns`;
  const canvas = make("canvas", undefined, { width: width * CELL + 1, height: height * CELL + 1, tabindex: 0, role: "img", "aria-label": title });
  const context = canvas.getContext("2d");
  colours.forEach((line, row) => line.forEach((color, col) => {
    context.fillStyle = ARC[color];
    context.fillRect(col * CELL, row * CELL, CELL, CELL);
    context.fillStyle = scale.color(values[tokens[row][col]]);
    context.fillRect(col * CELL + 5, row * CELL + 5, CELL - 9, CELL - 9);
    context.strokeStyle = "#555555";
    context.strokeRect(col * CELL + 0.5, row * CELL + 0.5, CELL, CELL);
    if (tokens[row][col] === state.token) {
      context.strokeStyle = "#ffffff";
      context.lineWidth = 4;
      context.strokeRect(col * CELL + 2, row * CELL + 2, CELL - 3, CELL - 3);
      context.strokeStyle = "#0550ae";
      context.lineWidth = 2;
      context.strokeRect(col * CELL + 2, row * CELL + 2, CELL - 3, CELL - 3);
      context.lineWidth = 1;
    }
  }));
  const choose = async (row, col) => {
    await change({ token: tokens[Math.max(0, Math.min(height - 1, row))][Math.max(0, Math.min(width - 1, col))] });
    [...document.querySelectorAll("#grids canvas")].find((it) => it.getAttribute("aria-label") === title)?.focus({ preventScroll: true });
  };
  canvas.addEventListener("click", (event) => {
    const ratio = canvas.width / canvas.getBoundingClientRect().width;
    choose(Math.floor((event.offsetY * ratio) / CELL), Math.floor((event.offsetX * ratio) / CELL));
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const row = tokens.findIndex((line) => line.includes(state.token)), col = row < 0 ? -1 : tokens[row].indexOf(state.token);
    choose(row < 0 ? 0 : row + move[0], row < 0 ? 0 : col + move[1]);
  });
  const figure = make("figure");
  figure.append(canvas, make("figcaption", `${name} ${grid.side}`));
  return figure;
}

// ---- the prompt, the token, the table -----------------------------------------------------------

function drawPrompt(values, scale) {
  const tokens = values.map((value, token) => {
    const color = scale.color(value), span = make("span", undefined, { class: token === state.token ? "token chosen" : "token", "data-token": token });
    span.style.background = color;
    span.style.color = inkOn(color);
    span.title = `token ${shown.positions[token]}: ${digits(value)}`;
    for (const [at, part] of textOf(token).split(UNSEEN).entries()) {
      if (at) span.append(make("span", visible(textOf(token).match(UNSEEN)[at - 1]), { class: "escape" }));
      span.append(part.replaceAll("\n", "⏎\n"));
    }
    return span;
  });
  const prompt = element("prompt"), top = prompt.scrollTop;
  prompt.replaceChildren(...tokens);
  prompt.scrollTop = top;
}

function placeOf(token) {
  for (const grid of shown.grids) {
    const row = grid.cells ? grid.cells.tokens.findIndex((line) => line.includes(token)) : -1;
    if (row >= 0) {
      const col = grid.cells.tokens[row].indexOf(token);
      return `${grid.pair === "test" ? "test" : `example ${grid.pair + 1}`} ${grid.side}, row ${row + 1}, column ${col + 1}, colour ${grid.cells.colours[row][col]} (as the prompt shows it)`;
    }
  }
  return "in no grid";
}

function drawDetail() {
  const token = state.token, flags = { 1: "first", 2: "special", 4: "sink" };
  if (token < 0 || token >= shown.tokens) {
    element("detail-text").textContent = "Choose a token or a cell.";
    return element("detail-chart").replaceChildren();
  }
  const bits = shown.flags[currentTap()][token];
  const around = [...Array(7).keys()].map((it) => it + token - 3).filter((it) => it >= 0 && it < shown.tokens).map((it) => (it === token ? `[${visible(textOf(it))}]` : visible(textOf(it)))).join("");
  element("detail-text").textContent = [
    `Token ${shown.positions[token]}, id ${shown.ids[token]}, ${JSON.stringify(visible(textOf(token)))}`,
    shown.roles ? `role ${shown.roles[shown.role_of[token]]}` : "",
    Object.entries(flags).filter(([bit]) => bits & Number(bit)).map(([, name]) => name).join(", "),
    placeOf(token),
    `in its place: ${around.replaceAll("\n", "⏎")}`,
    `here ${run.names.map((name) => `${name} ${digits(valuesAt(currentTap(), name)[token])}`).join(", ")}`,
  ].filter(Boolean).join("; ");
  const points = (site) => layersOf(site).map((layer) => [layer, valuesAt(tapAt(site, layer))[token]]);
  const series = sites.map((site) => ({ name: site, points: points(site), marked: site === state.site ? layersOf(site)[state.layer] : undefined }));
  chart(element("detail-chart"), series, `${state.value} of this token by layer`, !aroundZero(state.value) && !state.value.startsWith("feature"));
}

function drawTable() {
  const columns = run.names.map((name) => valuesAt(currentTap(), name));
  const rows = shown.ids.map((id, token) => [shown.positions[token], id, textOf(token).replaceAll("\n", "⏎"), shown.roles ? shown.roles[shown.role_of[token]] : "",
    placeOf(token), ...columns.map((values) => digits(values[token]))]);
  fillTable(element("token-table"), ["token", "id", "text", "role", "cell", ...run.names], rows, [0, 1, ...run.names.map((_, at) => at + 5)]);
}

// ---- controls -----------------------------------------------------------------------------------

function listed() {
  const key = { place: (it) => it, task: (it) => samples[it].task, tokens: (it) => -samples[it].tokens, largest: (it) => -samples[it].largest }[state.order];
  const compare = (one, other) => (key(one) < key(other) ? -1 : key(one) > key(other) ? 1 : one - other);
  return samples.map((_, at) => at).filter((at) => samples[at].task.toLowerCase().includes(state.search.toLowerCase())).sort(compare);
}

function fillControls() {
  const options = listed().map((at) => make("option", visible(`${samples[at].sample_idx}: ${samples[at].task}, ${samples[at].tokens} tokens, largest norm ${digits(samples[at].largest)}`), { value: at }));
  element("sample").replaceChildren(...options);
  element("sample").value = state.sample;
  element("order").value = state.order;
  if (element("search").value !== state.search) element("search").value = state.search;
  element("value").value = state.value;
  element("span").value = state.span;
  element("undo").checked = state.undo;
  for (const input of document.querySelectorAll("#sites input")) input.checked = input.value === state.site;
  const layers = layersOf(state.site);
  element("layer").max = layers.length - 1;
  element("layer").value = state.layer;
  element("layer-name").textContent = String(layers[state.layer]);
}

function step(by) {
  const all = listed(), at = all.indexOf(state.sample), next = all[Math.max(0, Math.min(all.length - 1, at < 0 ? 0 : at + by))];
  if (next !== undefined && next !== state.sample) change({ sample: next, token: -1 });
}

function link() {
  const { tab, site, value, token, undo, span, order, search } = state;
  const told = { tab, sample: samples[state.sample]?.sample_idx ?? "", source: samples[state.sample]?.source ?? "", site, layer: layersOf(site)[state.layer], value, token, undo: undo ? 1 : 0, span, order, search };
  history.replaceState(null, "", `#${new URLSearchParams(told)}`);
}

function fromLink() {
  const told = Object.fromEntries(new URLSearchParams(location.hash.slice(1))), next = { ...state };
  if (["run", "sample"].includes(told.tab)) next.tab = told.tab;
  const sample = samples.findIndex((it) => String(it.sample_idx) === told.sample && (!told.source || it.source === told.source));
  if (sample >= 0) next.sample = sample;
  if (sites.includes(told.site)) next.site = told.site;
  const layer = layersOf(next.site).indexOf(Number(told.layer));
  next.layer = layer >= 0 && told.layer !== undefined ? layer : Math.min(next.layer, layersOf(next.site).length - 1);
  if (run.names.includes(told.value)) next.value = told.value;
  if (/^\d+$/.test(told.token ?? "")) next.token = Number(told.token);
  next.undo = told.undo === "1";
  if (["layer", "all"].includes(told.span)) next.span = told.span;
  if (["place", "task", "tokens", "largest"].includes(told.order)) next.order = told.order;
  next.search = told.search ?? "";
  return next;
}

async function change(some) {
  const before = state;
  state = { ...state, ...some };
  const feature = state.value.startsWith("feature") && state.value !== before.value;
  if (feature && run.sae) Object.assign(state, { site: run.sae.site, layer: layersOf(run.sae.site).indexOf(run.sae.layer) });
  else if (state.site !== before.site && !("layer" in some)) {
    const layers = layersOf(state.site), layer = layersOf(before.site)[before.layer];
    state.layer = Math.max(0, layers.indexOf(layer));
  }
  for (const tab of ["run", "sample"]) {
    element(`${tab}-page`).hidden = state.tab !== tab;
    element(`tab-${tab}`).setAttribute("aria-selected", String(state.tab === tab));
    element(`tab-${tab}`).tabIndex = state.tab === tab ? 0 : -1;
  }
  fillControls();
  link();
  if (state.tab === "sample" && samples.length) {
    const wanted = state.sample, unpacked = await unpack(wanted);
    if (wanted !== state.sample) return; // another one was chosen meanwhile
    shown = unpacked;
    if (state.token >= shown.tokens) state.token = -1;
    drawSample();
  }
  document.body.dataset.ready = `${state.tab} ${state.sample} ${state.site} ${state.layer} ${state.value} ${state.token}`;
}

function listen() {
  for (const tab of ["run", "sample"]) {
    element(`tab-${tab}`).addEventListener("click", () => change({ tab }));
    element(`tab-${tab}`).addEventListener("keydown", (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      const other = tab === "run" ? "sample" : "run";
      change({ tab: other });
      element(`tab-${other}`).focus();
    });
  }
  for (const site of sites) {
    const label = make("label"), input = make("input", undefined, { type: "radio", name: "site", value: site });
    input.addEventListener("change", () => change({ site }));
    label.append(input, ` ${site}`);
    element("sites").append(label);
  }
  element("value").append(...run.names.map((name) => make("option", name, { value: name })));
  element("controls").addEventListener("submit", (event) => event.preventDefault());
  element("sample").addEventListener("change", (event) => change({ sample: Number(event.target.value), token: -1 }));
  element("order").addEventListener("change", (event) => change({ order: event.target.value }));
  element("search").addEventListener("input", (event) => {
    state.search = event.target.value;
    const all = listed();
    change(all.length && !all.includes(state.sample) ? { sample: all[0], token: -1 } : {});
  });
  element("layer").addEventListener("input", (event) => change({ layer: Number(event.target.value) }));
  element("value").addEventListener("change", (event) => change({ value: event.target.value }));
  element("span").addEventListener("change", (event) => change({ span: event.target.value }));
  element("undo").addEventListener("change", (event) => change({ undo: event.target.checked }));
  element("previous").addEventListener("click", () => step(-1));
  element("next").addEventListener("click", () => step(1));
  element("table-details").addEventListener("toggle", () => shown && element("table-details").open && drawTable());
  element("prompt").addEventListener("click", (event) => {
    const token = event.target.closest?.("[data-token]")?.dataset.token;
    if (token !== undefined) change({ token: Number(token) });
  });
  element("prompt").addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10 }[event.key];
    if (!by || !shown) return;
    event.preventDefault();
    change({ token: Math.max(0, Math.min(shown.tokens - 1, state.token + by)) }).then(() => element("prompt").querySelector(".chosen")?.scrollIntoView({ block: "nearest" }));
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "range") return;
    if (event.key === "n") step(1);
    if (event.key === "p") step(-1);
    const by = { "[": -1, "]": 1 }[event.key];
    if (by) change({ layer: Math.max(0, Math.min(layersOf(state.site).length - 1, state.layer + by)) });
  });
  addEventListener("hashchange", () => change(fromLink()));
}

listen();
drawRun();
change(fromLink());
