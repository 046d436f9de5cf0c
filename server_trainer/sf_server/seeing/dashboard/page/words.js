// Numbers, amounts and times as people read them. Pure: a value goes in, a text comes out.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];
const NOT_KNOWN = "–";

export function known(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** 12345 -> "12,345". */
export function count(value) {
  return known(value) ? Math.round(value).toLocaleString("en-US") : NOT_KNOWN;
}

/** Three significant digits; large numbers whole. */
export function number(value) {
  if (!known(value)) return NOT_KNOWN;
  const size = Math.abs(value);
  if (size >= 1000) return count(value);
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return trimmed(value.toPrecision(3));
}

/** 1234567 -> "1.23 MB". */
export function bytes(value) {
  if (!known(value)) return NOT_KNOWN;
  let amount = value;
  let unit = 0;
  while (amount >= 999.5 && unit < UNITS.length - 1) {
    amount /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? Math.round(amount) : trimmed(amount.toPrecision(3))} ${UNITS[unit]}`;
}

/** 0.1234 -> "12.3 %". */
export function percent(part, digits = 1) {
  return known(part) ? `${(100 * part).toFixed(digits)} %` : NOT_KNOWN;
}

/** Seconds as the two largest units: "4 min 10 s". */
export function duration(seconds) {
  if (!known(seconds)) return NOT_KNOWN;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return both(Math.floor(whole / 60), "min", whole % 60, "s");
  if (whole < 86400) return both(Math.floor(whole / 3600), "h", Math.floor((whole % 3600) / 60), "min");
  return both(Math.floor(whole / 86400), "d", Math.floor((whole % 86400) / 3600), "h");
}

/** Seconds since 1970 as the clock on the wall, with the day when it is not today. */
export function clockTime(seconds, nowSeconds = Date.now() / 1000) {
  if (!known(seconds) || seconds <= 0) return NOT_KNOWN;
  const when = new Date(1000 * seconds);
  const time = when.toLocaleTimeString("en-GB");
  return sameDay(when, new Date(1000 * nowSeconds)) ? time : `${isoDay(when)} ${time}`;
}

/** "3 s ago". */
export function ago(thenSeconds, nowSeconds) {
  if (!known(thenSeconds) || thenSeconds <= 0) return "never";
  return `${duration(nowSeconds - thenSeconds)} ago`;
}

/** "1 device", "2 devices". */
export function some(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

function both(large, largeUnit, small, smallUnit) {
  return small === 0 ? `${large} ${largeUnit}` : `${large} ${largeUnit} ${small} ${smallUnit}`;
}

function trimmed(text) {
  return text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text;
}

function sameDay(one, other) {
  return isoDay(one) === isoDay(other);
}

function isoDay(when) {
  const two = (part) => String(part).padStart(2, "0");
  return `${when.getFullYear()}-${two(when.getMonth() + 1)}-${two(when.getDate())}`;
}
