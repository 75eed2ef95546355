"use strict";
// What the page holds. Every text of the run goes through textContent; nothing is ever markup.

const element = (id) => document.getElementById(id);
const run = JSON.parse(element("run").textContent);
const samples = JSON.parse(element("samples").textContent);
const sites = [...new Set(run.taps.map((tap) => tap.site))];
const opened = new Map();

const layersOf = (site) => run.taps.filter((tap) => tap.site === site).map((tap) => tap.layer);
const tapAt = (site, layer) => run.taps.findIndex((tap) => tap.site === site && tap.layer === layer);

// The bytes of an element that holds base64 of gzip.
async function inflate(id) {
  const bytes = Uint8Array.from(atob(element(id).textContent), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

// A sample: its header, and the codes of its figures. The last ones are kept.
async function unpack(id) {
  if (!opened.has(id)) {
    const buffer = await inflate(id), length = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    opened.set(id, { ...header, codes: new Uint16Array(buffer, 4 + length) });
    if (opened.size > 12) opened.delete(opened.keys().next().value);
  }
  return opened.get(id);
}

// The figures of a sample's tokens, of which it has one after the other.
function figuresAt(sample, place) {
  return Array.from(sample.codes.subarray(place * sample.tokens, (place + 1) * sample.tokens), decode);
}

function textOf(token, sample = shown) {
  return sample.texts ? sample.texts[sample.text_of[token]] : `[${sample.ids[token]}]`;
}
