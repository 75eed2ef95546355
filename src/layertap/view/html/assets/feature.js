// One feature: how often it fires, with which values, and on what.

const SHOWN_ANSWERS = 8;
let drawnFeature = null; // the feature that is drawn now, and how

async function drawFeatures() {
  await openTables();
  if (!element("feature-about").textContent) {
    explainFeatures();
    fillFeatureChoices();
  }
  if (!entries.some((it) => it.key === state.feature)) state.feature = listedFeatures()[0]?.key ?? entries[0]?.key ?? "";
  link();
  fillFeatureControls();
  drawList();
  const wanted = `${state.feature} ${state.undo}`;
  if (wanted === drawnFeature) return true;
  const entry = entries.find((it) => it.key === state.feature);
  if (!entry) return true;
  drawFeature(entry);
  const finished = await drawTops(entry, () => `${state.feature} ${state.undo}` === wanted);
  if (finished) drawnFeature = wanted;
  return finished;
}

function drawFeature(entry) {
  const { sae, number } = entry, table = tables[sae], { name, site, layer } = run.saes[sae], active = activeOf(entry);
  element("feature-name").textContent = `Feature ${number} of ${name} (layer ${layer}, ${site})`;
  element("feature-facts").textContent = active
    ? `It fires at ${many(active)} of ${many(table.tokens)} tokens (${percent(densityOf(entry))}). Where it fires, its mean is ${digits(meanOf(entry))} and its largest value is ${digits(largestOf(entry))}.`
    : `It fires at none of ${many(table.tokens)} tokens.`;
  histogram(element("feature-histogram"), binsOf(entry), table.edges, `Histogram of feature ${number}`);
  const rows = binsOf(entry).map((count, at) => [digits(table.edges[at]), digits(table.edges[at + 1]), many(count), count]).filter((row) => row[3] > 0);
  fillTable(element("histogram-table"), ["from", "to", "tokens"], rows.map((row) => row.slice(0, 3)), [0, 1, 2]);
  const answers = answersOf(entry);
  drawAnswers(element("answers"), answers.slice(0, SHOWN_ANSWERS), table.least);
  drawAnswers(element("answers-more"), answers.slice(SHOWN_ANSWERS), table.least);
  element("answers-details").hidden = answers.length <= SHOWN_ANSWERS;
  element("answers-summary").textContent = `${answers.length - SHOWN_ANSWERS} more`;
  element("no-answers").hidden = answers.length > 0;
}

function drawAnswers(place, answers, least) {
  const head = make("tr"), most = Math.max(1, ...answers.map((it) => Math.abs(Math.log2(it.lift))));
  for (const [name, kind] of [["label"], ["lift", "number"], ["", "lift"], ["tokens", "number"], ["of its tokens", "number"], ["of all", "number"]]) head.append(make("th", name, { scope: "col", ...(kind ? { class: kind } : {}) }));
  if (!answers.length) return place.replaceChildren();
  place.replaceChildren(head, ...answers.map((it) => {
    const line = make("tr", undefined, it.few ? { class: "few" } : {}), bar = make("td", undefined, { class: "lift", "aria-hidden": "true" }), fill = make("span");
    fill.style.width = `${(100 * Math.abs(Math.log2(it.lift))) / most}%`;
    if (it.lift < 1) fill.className = "below";
    bar.append(fill);
    line.append(make("th", visible(`${it.group}: ${it.value}`), { scope: "row" }), make("td", digits(it.lift), { class: "number" }), bar,
      make("td", it.few ? `${many(it.fired)}, few` : many(it.fired), { class: "number", ...(it.few ? { title: `fewer than ${least} tokens` } : {}) }),
      make("td", percent(it.own), { class: "number" }), make("td", percent(it.chance), { class: "number" }));
    return line;
  }));
}
