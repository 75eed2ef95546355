// Decodes stored numbers, and writes numbers for a person.

function decode(code) {
  if (code === 0) return 0;
  if (code === 65535) return NaN;
  if (code >= 65533) return code === 65534 ? Infinity : -Infinity;
  const number = code - 1, rest = number >> 1;
  const size = Number(`${(rest % 900) + 100}e${Math.floor(rest / 900) - 20}`);
  return number & 1 ? -size : size;
}

function digits(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

function quantile(sorted, share) {
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : NaN;
}
