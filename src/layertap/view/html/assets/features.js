// The counts of all listed features of each autoencoder, unpacked once.

const counted = element("features") ? JSON.parse(element("features").textContent) : null;
const tables = [];
let entries = []; // every listed feature of every autoencoder, the most interesting first

async function openTables() {
  if (tables.length || !counted) return;
  for (const at of run.saes.keys()) tables.push(readTable(await inflate(`features-${at}`)));
  entries = tables.flatMap((table, sae) => Array.from({ length: table.listed }, (_, row) => ({ key: `${sae}:${table.numbers[2 * row]}`, sae, row, number: table.numbers[2 * row] })));
  entries.sort((one, other) => one.row - other.row || one.sae - other.sae);
}

function readTable(buffer) {
  const length = new DataView(buffer).getUint32(0, true), header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const groups = [];
  let begin = 0;
  for (const group of header.groups) {
    groups.push({ ...group, begin, end: begin + group.values.length, all: group.tokens.reduce((sum, own) => sum + own, 0) });
    begin += group.values.length;
  }
  const bins = header.edges.length - 1, wide = 1 + bins + begin, kind = header.wide ? Float64Array : Uint32Array;
  const counts = new kind(buffer, 4 + length, header.listed * wide);
  const numbers = new Int32Array(buffer, counts.byteOffset + counts.byteLength, header.listed * 2);
  const codes = new Uint16Array(buffer, numbers.byteOffset + numbers.byteLength, header.listed * 2);
  return { ...header, groups, bins, wide, counts, numbers, codes };
}

const activeOf = ({ sae, row }) => tables[sae].counts[row * tables[sae].wide];
const densityOf = (entry) => activeOf(entry) / Math.max(tables[entry.sae].tokens, 1);
const meanOf = ({ sae, row }) => decode(tables[sae].codes[2 * row]);
const largestOf = ({ sae, row }) => decode(tables[sae].codes[2 * row + 1]);
const isDrawn = ({ sae, number }) => counted.drawn[sae].includes(number);

function binsOf({ sae, row }) {
  const { counts, wide, bins } = tables[sae];
  return Array.from(counts.subarray(row * wide + 1, row * wide + 1 + bins));
}

// A feature at one value of a group: how often it fires there, the two shares, and their quotient.
function answerOf({ sae, row }, group, value) {
  const { counts, wide, bins } = tables[sae], begin = row * wide + 1 + bins;
  let all = 0;
  for (let at = group.begin; at < group.end; at++) all += counts[begin + at];
  const fired = counts[begin + group.begin + value], own = fired / all, chance = group.tokens[value] / group.all;
  return { group: group.name, value: group.values[value], fired, own, chance, lift: own / chance, few: fired < tables[sae].least };
}

// All values on which it fires. Values that say most come first: the logarithm of the lift, times
// the share of the feature's tokens. Values on which it fires at few tokens come last.
function answersOf(entry) {
  const active = activeOf(entry), tells = (it) => (it.fired / active) * Math.log2(it.lift);
  const found = tables[entry.sae].groups.flatMap((group) => group.values.map((_, value) => answerOf(entry, group, value)));
  return found.filter((it) => it.fired > 0).sort((one, other) => one.few - other.few || tells(other) - tells(one));
}

// The value with this name, such as "colour: red", or without a name the one that says most.
function strongestOf(entry, named) {
  const table = tables[entry.sae], place = named ? placeOfLabel(table, named) : table.numbers[2 * entry.row + 1];
  const group = table.groups.find((own) => own.begin <= place && place < own.end);
  return group && activeOf(entry) ? answerOf(entry, group, place - group.begin) : null;
}

function placeOfLabel(table, named) {
  for (const group of table.groups) {
    const value = group.values.findIndex((own) => `${group.name}: ${own}` === named);
    if (value >= 0) return group.begin + value;
  }
  return -1;
}

// The entries that pass the controls' filters, in the chosen order.
function listedFeatures() {
  const { order, sae, label, drawn, search } = state.features;
  const about = (entry) => {
    const answer = strongestOf(entry, label);
    return answer !== null && !answer.few && answer.lift >= 2;
  };
  const left = entries.filter((entry) => (sae === "" || entry.sae === Number(sae)) && (!drawn || isDrawn(entry)) && String(entry.number).startsWith(search) && (!label || about(entry)));
  if (order === "interest") return left;
  const key = { density: densityOf, mean: meanOf, largest: largestOf, number: (entry) => -entry.number, lift: (entry) => strongestOf(entry, label)?.lift ?? -1 }[order];
  const keys = new Map(left.map((entry) => [entry, key(entry)]));
  return left.sort((one, other) => keys.get(other) - keys.get(one) || one.number - other.number || one.sae - other.sae);
}
