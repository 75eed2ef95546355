// What the page shows: read from controls, keys and the address, and written back to them.

const TABS = counted ? ["run", "sample", "feature"] : ["run", "sample"];
const ORDERS = ["interest", "density", "lift", "mean", "largest", "number"];
let state = {
  tab: "run", sample: 0, site: sites[0], layer: 0, value: run.names[0], token: -1, undo: false, span: "layer", order: "place", search: "",
  feature: "", // as autoencoder:number
  features: { order: "interest", sae: "", label: "", drawn: false, search: "", page: 0 },
};

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
  if (state.tab === "feature") return stepFeature(by);
  const all = listed(), at = all.indexOf(state.sample), next = all[Math.max(0, Math.min(all.length - 1, at < 0 ? 0 : at + by))];
  if (next !== undefined && next !== state.sample) change({ sample: next, token: -1 });
}

function stepFeature(by) {
  const all = listedFeatures(), at = all.findIndex((it) => it.key === state.feature), next = Math.max(0, Math.min(all.length - 1, at < 0 ? 0 : at + by));
  if (all.length) change({ feature: all[next].key, features: { ...state.features, page: Math.floor(next / ROWS) } });
}

function link() {
  const { tab, site, value, token, undo, span, order, search, feature, features } = state;
  const told = { tab, sample: samples[state.sample]?.sample_idx ?? "", source: samples[state.sample]?.source ?? "", site, layer: layersOf(site)[state.layer], value, token, undo: undo ? 1 : 0, span, order, search };
  if (counted && feature) Object.assign(told, { feature, features: features.order, autoencoder: features.sae, label: features.label, drawn: features.drawn ? 1 : 0, number: features.search, page: features.page });
  history.replaceState(null, "", `#${new URLSearchParams(told)}`);
}

function fromLink() {
  const told = Object.fromEntries(new URLSearchParams(location.hash.slice(1))), next = { ...state };
  if (TABS.includes(told.tab)) next.tab = told.tab;
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
  return { ...next, ...featuresFromLink(told) };
}

function featuresFromLink(told) {
  const { feature, features } = state, chosen = /^\d+:\d+$/.test(told.feature ?? "") ? told.feature : feature;
  if (told.features === undefined) return { feature: chosen, features };
  const own = { order: ORDERS.includes(told.features) ? told.features : "interest", drawn: told.drawn === "1", search: /^\d*$/.test(told.number ?? "") ? told.number ?? "" : "" };
  const sae = /^\d+$/.test(told.autoencoder ?? "") && Number(told.autoencoder) < run.saes.length ? told.autoencoder : "";
  return { feature: chosen, features: { ...own, sae, label: told.label ?? "", page: /^\d+$/.test(told.page ?? "") ? Number(told.page) : 0 } };
}

async function change(some) {
  const before = state;
  state = { ...state, ...some };
  const named = run.features.find(([name]) => name === state.value);
  if (named && state.value !== before.value) {
    const { site, layer } = run.saes[named[1]];
    Object.assign(state, { site, layer: layersOf(site).indexOf(layer) });
  } else if (state.site !== before.site && !("layer" in some)) {
    const layers = layersOf(state.site), layer = layersOf(before.site)[before.layer];
    state.layer = Math.max(0, layers.indexOf(layer));
  }
  for (const tab of TABS) {
    element(`${tab}-page`).hidden = state.tab !== tab;
    element(`tab-${tab}`).setAttribute("aria-selected", String(state.tab === tab));
    element(`tab-${tab}`).tabIndex = state.tab === tab ? 0 : -1;
  }
  fillControls();
  link();
  if (state.tab === "sample" && samples.length) {
    const wanted = state.sample, unpacked = await unpack(`sample-${wanted}`);
    if (wanted !== state.sample) return; // another sample was chosen meanwhile
    shown = unpacked;
    if (state.token >= shown.tokens) state.token = -1;
    drawSample(named);
  }
  if (state.tab === "feature" && !(await drawFeatures())) return;
  document.body.dataset.ready = state.tab === "feature" ? `feature ${state.feature}` : `${state.tab} ${state.sample} ${state.site} ${state.layer} ${state.value} ${state.token}`;
}
