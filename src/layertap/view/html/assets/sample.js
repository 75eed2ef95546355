// One sample: its prompt, its grids, a token, and all tokens as a table.

let shown = null; // the sample that is shown, unpacked

// The names of features come last. A feature has values at one tap only.
const everywhere = run.names.length - run.features.length;

function isKnownAt(tap, name) {
  const feature = run.names.indexOf(name) - everywhere;
  return feature < 0 || shown.feature_taps[feature] === tap;
}

function valuesAt(tap, name = state.value) {
  const place = run.names.indexOf(name);
  if (!isKnownAt(tap, name)) return new Array(shown.tokens).fill(NaN);
  return figuresAt(shown, place < everywhere ? place * run.taps.length + tap : everywhere * run.taps.length + place - everywhere);
}

function currentTap() {
  return tapAt(state.site, layersOf(state.site)[state.layer]);
}

function currentScale() {
  const taps = state.span === "all" ? layersOf(state.site).map((layer) => tapAt(state.site, layer)) : [currentTap()];
  return scaleOf(taps.flatMap((tap) => valuesAt(tap)), state.value);
}

function drawSample(named) {
  const values = valuesAt(currentTap()), scale = currentScale();
  drawLegend(element("legend"), scale, ` at layer ${layersOf(state.site)[state.layer]}, ${state.site}`);
  element("to-feature").hidden = !named;
  if (named) element("to-feature").href = `#${new URLSearchParams({ tab: "feature", feature: `${named[1]}:${named[2]}` })}`;
  drawAbout();
  drawGrids(values, scale);
  drawPrompt(values, scale);
  drawDetail();
  if (element("table-details").open) drawTable();
}

// Says how a prompt differs from others of its task.
function originOf(sample, undo) {
  const { test_index, prediction, augmentation } = sample.origin, parts = [];
  if (test_index !== null && test_index !== undefined) parts.push(`test input ${test_index + 1}, prediction ${prediction}`);
  if (augmentation) {
    const { flip, rotations, colors } = augmentation;
    const shown = [flip && "mirrored", rotations && `turned by ${90 * rotations}°`, `with colours ${colors.join("")}`];
    parts.push(`shown ${shown.filter(Boolean).join(", ")}${undo ? " (undone here)" : ""}`);
  }
  return parts;
}

function drawAbout() {
  const parts = [`task ${visible(shown.task)}, sample ${shown.sample_idx}`, `${shown.tokens} tokens`];
  if (shown.source) parts.push(visible(shown.source));
  parts.push(...originOf(shown, state.undo));
  if (shown.left_out) parts.push(`${shown.left_out} tokens at its end did not fit on this page (--max_mb)`);
  if (!shown.texts) parts.push("no tokenizer was found (--tokenizer), so tokens are numbers");
  element("about").textContent = parts.join("; ");
}

function drawGrids(values, scale) {
  element("grids-section").hidden = !shown.grids.length;
  element("columns").className = shown.grids.length ? "" : "one";
  element("undo").disabled = !shown.origin.augmentation;
  const root = element("grids"), how = { sample: shown, values, scale, token: state.token, undo: state.undo, root, choose: (token) => change({ token }) };
  root.replaceChildren(...pairsToDraw(how).map((pair) => drawPair(pair, how)));
}
