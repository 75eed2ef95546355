// Colours for values, and the ink that is readable on them.

const ARC = ["#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00", "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25"];
const RISING = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const AROUND_ZERO = ["#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b"];
const LINES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31", "#7f7f7f"];
const CELL = 22, CORNER = 6;

function mix(stops, share) {
  const place = Math.max(0, Math.min(1, share)) * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(place));
  const part = (hex, at) => parseInt(hex.slice(at, at + 2), 16);
  const channel = (at) => Math.round(part(stops[low], at) + (place - low) * (part(stops[low + 1], at) - part(stops[low], at)));
  return `rgb(${channel(1)}, ${channel(3)}, ${channel(5)})`;
}

const isFeature = (name) => name.startsWith("feature");

function aroundZero(name) {
  return name === "cosine" || name.startsWith("channel");
}

// Signed values are coloured around zero, sizes by their logarithm. The outermost two percent get
// the end colours; otherwise a few sinks would leave one colour for all other tokens.
function scaleOf(values, name) {
  const known = values.filter(Number.isFinite).sort((a, b) => a - b);
  if (isFeature(name)) return featureScale(quantile(known.filter((value) => value > 0), 0.98) || 0, name);
  if (aroundZero(name)) {
    const most = name === "cosine" ? 1 : Math.max(Math.abs(quantile(known, 0.02)), Math.abs(quantile(known, 0.98)), 1e-12);
    return { name, low: -most, high: most, color: (value) => (Number.isFinite(value) ? mix(AROUND_ZERO, (value / most + 1) / 2) : "#ffffff") };
  }
  const low = Math.max(quantile(known, 0.02), 1e-12), high = Math.max(quantile(known, 0.98), low * 1.0001);
  const share = (value) => Math.log(Math.max(value, 1e-12) / low) / Math.log(high / low);
  return { name, low, high, color: (value) => (Number.isNaN(value) ? "#ffffff" : mix(RISING, share(value))) };
}

// A feature is zero at most tokens. These get no colour, and a cell where it fires gets a square
// that grows with its value. Both are visible on any of ARC's colours.
function featureScale(most, name) {
  const high = Math.max(most, 1e-12);
  const size = (value) => (value > 0 ? 3 + Math.round(7 * Math.sqrt(Math.min(1, value / high))) : 0);
  return { name, low: 0, high, size, color: (value) => (value > 0 ? mix(RISING, value / high) : "#ffffff") };
}

function drawLegend(place, scale, where = "") {
  const stops = aroundZero(scale.name) ? AROUND_ZERO : RISING, bar = make("span", undefined, { class: "bar" });
  bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
  const told = scale.size ? "; the square in a cell grows with the value; 0 has no square" : "";
  place.replaceChildren(make("span", digits(scale.low)), bar, make("span", `${digits(scale.high)}  ${scale.name}${where}${told}`));
}

function inkOn(color) {
  const [red, green, blue] = color.startsWith("#") ? [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)) : color.match(/\d+/g).map(Number);
  const linear = [red, green, blue].map((it) => (it / 255 <= 0.03928 ? it / 255 / 12.92 : ((it / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18 ? "#000000" : "#ffffff";
}
