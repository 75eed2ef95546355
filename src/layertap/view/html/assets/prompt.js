// The prompt of a sample, one of its tokens, and all tokens as a table.

// Draws tokens in the colours of their values: those in `range`, or all.
function spansOf(sample, values, scale, chosen, range = [0, sample.tokens]) {
  return values.slice(...range).map((value, at) => {
    const token = range[0] + at, color = scale.color(value), text = textOf(token, sample);
    const span = make("span", undefined, { class: token === chosen ? "token chosen" : "token", "data-token": token });
    span.style.background = color;
    span.style.color = inkOn(color);
    span.title = `token ${sample.positions[token]}: ${digits(value)}`;
    for (const [place, part] of text.split(UNSEEN).entries()) {
      if (place) span.append(make("span", visible(text.match(UNSEEN)[place - 1]), { class: "escape" }));
      span.append(part.replaceAll("\n", "⏎\n"));
    }
    return span;
  });
}

function drawPrompt(values, scale) {
  const prompt = element("prompt"), top = prompt.scrollTop;
  prompt.replaceChildren(...spansOf(shown, values, scale, state.token));
  prompt.scrollTop = top;
}

function drawDetail() {
  const token = state.token, flags = { 1: "first", 2: "special", 4: "sink", 8: "prefix" };
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
    placeOf(token, shown),
    `context: ${around.replaceAll("\n", "⏎")}`,
    `values: ${run.names.map((name) => [name, valuesAt(currentTap(), name)[token]]).filter(([name, value]) => !isFeature(name) || value > 0).map(([name, value]) => `${name} ${digits(value)}`).join(", ")}`,
  ].filter(Boolean).join("; ");
  const points = (site) => layersOf(site).map((layer) => [layer, valuesAt(tapAt(site, layer))[token]]);
  const series = sites.map((site) => ({ name: site, points: points(site), marked: site === state.site ? layersOf(site)[state.layer] : undefined }));
  chart(element("detail-chart"), series, `${state.value} of this token by layer`, !aroundZero(state.value) && !isFeature(state.value));
}

function drawTable() {
  const names = run.names.filter((name) => isKnownAt(currentTap(), name)), columns = names.map((name) => valuesAt(currentTap(), name));
  const rows = shown.ids.map((id, token) => [shown.positions[token], id, textOf(token).replaceAll("\n", "⏎"), shown.roles ? shown.roles[shown.role_of[token]] : "",
    placeOf(token, shown), ...columns.map((values) => digits(values[token]))]);
  fillTable(element("token-table"), ["token", "id", "text", "role", "cell", ...names], rows, [0, 1, ...names.map((_, at) => at + 5)]);
}
