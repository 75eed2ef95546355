// Controls and keys.

function listen() {
  for (const [at, tab] of TABS.entries()) {
    element(`tab-${tab}`).hidden = false;
    element(`tab-${tab}`).addEventListener("click", () => change({ tab }));
    element(`tab-${tab}`).addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      const other = TABS[(at + by + TABS.length) % TABS.length];
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

function listenToFeatures() {
  const set = (some) => change({ features: { ...state.features, page: 0, ...some } });
  element("feature-controls").addEventListener("submit", (event) => event.preventDefault());
  element("feature-order").addEventListener("change", (event) => set({ order: event.target.value }));
  element("feature-sae").addEventListener("change", (event) => set({ sae: event.target.value }));
  element("feature-label").addEventListener("change", (event) => set({ label: event.target.value, order: event.target.value ? "lift" : state.features.order }));
  element("feature-drawn").addEventListener("change", (event) => set({ drawn: event.target.checked }));
  element("feature-search").addEventListener("input", (event) => set({ search: event.target.value.replace(/\D/g, "") }));
  element("feature-undo").addEventListener("change", (event) => change({ undo: event.target.checked }));
  element("features-before").addEventListener("click", () => set({ page: state.features.page - 1 }));
  element("features-after").addEventListener("click", () => set({ page: state.features.page + 1 }));
  element("feature-list").addEventListener("click", async (event) => {
    const key = event.target.closest?.("tr")?.querySelector("[data-key]")?.dataset.key;
    if (key === undefined) return;
    await change({ feature: key });
    element("feature-list").querySelector(`[data-key="${key}"]`)?.focus({ preventScroll: true });
    if (innerWidth < 1000) element("feature").scrollIntoView();
  });
}

listen();
if (counted) listenToFeatures();
drawRun();
change(fromLink());
