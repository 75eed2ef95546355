// The list of features, one page at a time, with its filters and its order.

const ROWS = 50;
const percent = (share) => (Number.isFinite(share) ? `${digits(100 * share)} %` : "–");
const many = (count) => count.toLocaleString("en");
const times = (answer) => `${digits(answer.lift)} × ${answer.group}: ${answer.value}`;

function drawList() {
  const all = listedFeatures(), several = tables.length > 1, pages = Math.max(1, Math.ceil(all.length / ROWS));
  const page = Math.min(state.features.page, pages - 1), shownNow = all.slice(page * ROWS, (page + 1) * ROWS);
  const head = make("tr");
  for (const [name, number] of [["feature"], ...(several ? [["at"]] : []), ["fires most on"], ["tokens", 1], ["density", 1], ["mean", 1], ["largest", 1]])
    head.append(make("th", name, { scope: "col", ...(number ? { class: "number" } : {}) }));
  element("feature-list").replaceChildren(head, ...shownNow.map((entry) => rowOf(entry, several)));
  const of = counted.shown.of_features, left = of - entries.length;
  element("feature-count").textContent = `${all.length ? `${page * ROWS + 1} to ${page * ROWS + shownNow.length} of ` : ""}${many(all.length)} features${left ? `; ${many(left)} of ${many(of)} did not fit on this page (--max_mb)` : ""}`;
  element("features-before").disabled = page === 0;
  element("features-after").disabled = page >= pages - 1;
}

function rowOf(entry, several) {
  const line = make("tr"), answer = strongestOf(entry, state.features.label), named = make("th", undefined, { scope: "row" });
  const chosen = entry.key === state.feature, told = isDrawn(entry) ? `${entry.number} ▦` : String(entry.number);
  const button = make("button", told, { type: "button", "data-key": entry.key, "aria-label": `feature ${entry.number} at ${run.saes[entry.sae].name}${isDrawn(entry) ? ", with grids" : ""}` });
  if (chosen) button.setAttribute("aria-current", "true");
  named.append(button);
  line.append(named);
  const numbers = [answer ? many(answer.fired) : "–", percent(densityOf(entry)), digits(meanOf(entry)), digits(largestOf(entry))];
  if (several) line.append(make("td", run.saes[entry.sae].name));
  line.append(make("td", activeOf(entry) ? (answer ? visible(times(answer)) : "–") : "never fires", { class: "about" }), ...numbers.map((text) => make("td", text, { class: "number" })));
  return line;
}

// Says once how the drawn features were chosen.
function explainFeatures() {
  const { shown: { places, of, drawn }, named } = counted, table = tables[0];
  const how = named ? "those you named (--features)" : "those that fire at 0.01 % to 10 % of tokens, ordered by how much their strongest label says; the best feature of each label comes before the second best of any";
  element("feature-about").textContent = `Counted at ${many(table.tokens)} tokens of ${many(table.samples)} samples, without the first token of each and without sinks. ${drawn} of ${many(counted.shown.of_features)} features are drawn with their grids or texts (▦): ${how}.`
    + (places < of ? ` ${of - places} of ${of} of their largest places did not fit on this page (--max_mb).` : "");
  element("lift-about").textContent = `The lift of a label says how many times more often than by chance the feature fires on tokens with it. “Fires most on” is the label that says most: the logarithm of its lift, times the share of the feature's tokens that have it. Labels on which it fires at fewer than ${table.least} tokens do not count.`;
}

function fillFeatureChoices() {
  const labels = new Map(tables.flatMap((table) => table.groups.map((group) => [group.name, group.values])));
  for (const [name, values] of labels) {
    const group = make("optgroup", undefined, { label: name });
    group.append(...values.map((value) => make("option", visible(`${name}: ${value}`), { value: `${name}: ${value}` })));
    element("feature-label").append(group);
  }
  element("feature-sae").append(...run.saes.map((sae, at) => make("option", sae.name, { value: at })));
  element("feature-sae").closest("label").hidden = run.saes.length < 2;
}

function fillFeatureControls() {
  const { order, sae, label, drawn, search } = state.features;
  element("feature-order").value = order;
  element("feature-sae").value = sae;
  element("feature-label").value = label;
  element("feature-drawn").checked = drawn;
  if (element("feature-search").value !== search) element("feature-search").value = search;
  element("feature-undo").checked = state.undo;
}
