// Axes: round ticks and the way from a value to a place. Pure.

/** About `wanted` round numbers that lie between `low` and `high`. */
export function ticks(low, high, wanted) {
  if (!(high > low)) return [low];
  const step = roundStep((high - low) / Math.max(1, wanted));
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => tidy((first + index) * step));
}

/** The range of values with a little room around, so that no line lies on the frame. */
export function roomy(values, { atLeast = 0, floor = -Infinity, ceiling = Infinity } = {}) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const room = Math.max((high - low) * 0.08, atLeast / 2, Math.abs(high) * 0.005, 1e-9);
  return [Math.max(floor, low - room), Math.min(ceiling, high + room)];
}

/** A function from [low, high] to [from, to]. */
export function linear([low, high], [from, to]) {
  const span = high - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

/** Index of the item whose `x` is nearest; items are in order of `x`. */
export function nearest(items, x) {
  let low = 0;
  let high = items.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (items[middle].x < x) low = middle;
    else high = middle;
  }
  return Math.abs(items[low].x - x) <= Math.abs(items[high].x - x) ? low : high;
}

/** As many digits after the point as tell neighbouring ticks apart. */
export function tickText(value, step) {
  let digits = 0;
  while (digits < 6 && Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) > 1e-6) digits += 1;
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function roundStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  const factor = [1, 2, 2.5, 5, 10].find((candidate) => candidate * power >= rough * 0.999) ?? 10;
  return factor * power;
}

function tidy(value) {
  return Number(value.toPrecision(12));
}
