// Where a feature is largest: grids, or the tokens of a text, with its value on them.

const FIRST = 4;
const AROUND = [60, 30];

// Draws the places that are on the page. Returns false if another feature was chosen meanwhile.
async function drawTops(entry, current) {
  const places = counted.places[entry.sae][entry.number] ?? [], kept = places.filter(([at]) => at >= 0), high = largestOf(entry);
  const scale = featureScale(high, `feature ${entry.number}`), made = [];
  for (const place of kept) {
    const sample = await unpack(`top-${place[0]}`);
    if (!current()) return false;
    made.push(drawTop(entry, sample, place, scale, places.indexOf(place) + 1));
  }
  element("feature-legend").hidden = !made.length;
  drawLegend(element("feature-legend"), scale);
  element("tops-note").textContent = isDrawn(entry)
    ? places.length - kept.length ? `${places.length - kept.length} of its ${places.length} largest places did not fit on this page (--max_mb).` : kept.length ? "" : "It fires nowhere."
    : `This feature is not drawn: --features ${entry.number} draws it, with its grids or texts.`;
  made.slice(FIRST).forEach((one) => { one.hidden = true; });
  const more = element("tops-more");
  more.hidden = made.length <= FIRST;
  more.textContent = `Show all ${made.length}`;
  more.onclick = () => {
    made.forEach((one) => { one.hidden = false; });
    more.hidden = true;
    made[FIRST].querySelector("canvas, a, button")?.focus();
  };
  element("tops").replaceChildren(...made);
  return true;
}

function drawTop(entry, sample, [, token, row, value], scale, rank) {
  const article = make("article", undefined, { class: "top", "aria-label": `place ${rank}` }), body = make("div", undefined, { class: "body" });
  const values = figuresAt(sample, row), local = { token, whole: false };
  const button = make("button", "Show the whole sample", { type: "button" }), said = make("p", undefined, { class: "said", "aria-live": "polite" });
  const redraw = () => {
    const how = { sample, values, scale, token: local.token, undo: state.undo, root: body, choose: (chosen) => { local.token = chosen; redraw(); } };
    body.replaceChildren(...bodyOf(how, token, local.whole));
    article.style.width = `${widthOf(body)}px`;
    button.textContent = local.whole ? "Show only the part around it" : "Show the whole sample";
    said.textContent = local.token === token ? "" : `${digits(values[local.token])} at ${placeOf(local.token, sample)}`;
  };
  button.addEventListener("click", () => {
    local.whole = !local.whole;
    redraw();
  });
  const told = [`sample ${sample.sample_idx}`, sample.source ? visible(sample.source) : "", ...originOf(sample, state.undo), sample.grids.length ? placeOf(token, sample) : `token ${sample.positions[token]}`];
  const head = make("p", undefined, { class: "meta" });
  head.append(told.filter(Boolean).join("; "));
  article.append(make("h4", `${rank}. ${digits(value)} in task ${visible(sample.task)}`), body, head, said);
  if (sample.grids.length) article.append(button, " ");
  const there = linkTo(entry, sample, token);
  if (there) article.append(there);
  redraw();
  return article;
}

// The width of its widest pair of grids side by side, so that small articles share a line.
function widthOf(body) {
  const pairs = [...body.querySelectorAll(".pair")].map((pair) => [...pair.querySelectorAll("canvas")].reduce((sum, canvas) => sum + canvas.width + 24, 0));
  return pairs.length ? Math.max(270, ...pairs) : 10000;
}

// Draws the pair of grids with the largest value or the tokens around it, or the whole sample.
function bodyOf(how, token, whole) {
  const pairs = pairsToDraw(how), has = (grid) => grid.cells?.tokens.some((line) => line.includes(token));
  const own = pairs.filter(({ grids }) => grids.some(has));
  if (whole) return [...pairs.map((pair) => drawPair(pair, how)), ...(own.length ? [] : [wordsOf(how, token)])];
  return own.length ? own.map((pair) => drawPair(pair, how)) : [wordsOf(how, token)];
}

function wordsOf(how, token) {
  const { sample, values, scale } = how, range = [Math.max(0, token - AROUND[0]), Math.min(sample.tokens, token + AROUND[1])];
  const words = make("div", undefined, { class: "tokens" });
  if (sample.begin + range[0] > 0) words.append("… ");
  words.append(...spansOf(sample, values, scale, token, range));
  if (sample.begin + range[1] < sample.tokens + sample.left_out) words.append(" …");
  return words;
}

// A link to the sample in the tab of samples, if the page has it.
function linkTo(entry, sample, token) {
  if (!samples.some((it) => it.sample_idx === sample.sample_idx && it.source === sample.source)) return null;
  const { site, layer } = run.saes[entry.sae], value = run.features.find(([, sae, number]) => sae === entry.sae && number === entry.number)[0];
  const told = { tab: "sample", sample: sample.sample_idx, source: sample.source, site, layer, value, token: sample.begin + token, undo: state.undo ? 1 : 0 };
  return make("a", "Open it in Samples", { href: `#${new URLSearchParams(told)}` });
}
