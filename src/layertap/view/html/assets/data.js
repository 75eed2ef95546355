"use strict";
// The data of the page. Every text of the run goes through textContent; none becomes markup.

const element = (id) => document.getElementById(id);
const run = JSON.parse(element("run").textContent);
const samples = JSON.parse(element("samples").textContent);
const sites = [...new Set(run.taps.map((tap) => tap.site))];
const opened = new Map();

const layersOf = (site) => run.taps.filter((tap) => tap.site === site).map((tap) => tap.layer);
const tapAt = (site, layer) => run.taps.findIndex((tap) => tap.site === site && tap.layer === layer);

// Unpacks the bytes of an element that holds gzip in base64.
async function inflate(id) {
  const bytes = Uint8Array.from(atob(element(id).textContent), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

// Unpacks a sample: its header, and the codes of its figures. Keeps the last few.
async function unpack(id) {
  if (!opened.has(id)) {
    const buffer = await inflate(id), length = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    opened.set(id, { ...header, codes: new Uint16Array(buffer, 4 + length) });
    if (opened.size > 12) opened.delete(opened.keys().next().value);
  }
  return opened.get(id);
}

// One row of figures, with a number for each token of the sample.
function figuresAt(sample, place) {
  return Array.from(sample.codes.subarray(place * sample.tokens, (place + 1) * sample.tokens), decode);
}

function textOf(token, sample = shown) {
  return sample.texts ? sample.texts[sample.text_of[token]] : `[${sample.ids[token]}]`;
}
