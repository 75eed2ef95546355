// The run: its facts, and its norms by layer.

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
      `Percent of the squared norm. A sink has over 10 times the usual norm of its sample. The prefix is the ${run.shares.prefix_tokens} tokens that all samples begin with.`;
  } else element("share-note").textContent = "Not shown: this run is stored as pickles, whose norms cannot be read without all activations. `layertap stats --norms all` reads them.";
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
