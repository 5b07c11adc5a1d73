/** Numbers, durations and times as an operator reads them: three digits and a unit. */

const GAP = "\u202f"; // a narrow space that does not break
export const NONE = "–";

const isNone = (value) => value === null || value === undefined || Number.isNaN(value);

function digits(value) {
  const size = Math.abs(value);
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1).replace(/\.0$/, "");
  return value.toFixed(2).replace(/\.?0+$/, "");
}

/** 1234 -> "1,234": counts are whole. */
export function count(value) {
  if (isNone(value)) return NONE;
  return Math.round(value)
    .toString()
    .replace(/\B(?=(\d{3})+$)/g, ",");
}

/** 0.42, 12.3, 1,830, 12.3 k: a number without a unit, or before one. */
export function number(value) {
  if (isNone(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 1e6) return `${digits(value / 1e6)}${GAP}M`;
  if (size >= 1e4) return `${digits(value / 1e3)}${GAP}k`;
  return size >= 1000 ? count(value) : digits(value);
}

export function ms(value) {
  if (isNone(value)) return NONE;
  if (value >= 120_000) return duration(value / 1000);
  if (value >= 1000) return `${digits(value / 1000)}${GAP}s`;
  if (value < 0.01) return `0${GAP}ms`;
  return `${digits(value)}${GAP}ms`;
}

export const seconds = (value) => (isNone(value) ? NONE : ms(value * 1000));

/** 4 s, 2 min 5 s, 3 h 12 min, 2 d 4 h. */
export function duration(value) {
  if (isNone(value)) return NONE;
  const s = Math.max(0, Math.round(value));
  if (s < 60) return `${s}${GAP}s`;
  const parts = [
    ["d", 86400],
    ["h", 3600],
    ["min", 60],
    ["s", 1],
  ];
  const first = parts.findIndex(([, length]) => s >= length);
  const [unit, length] = parts[first];
  const next = parts[first + 1];
  const rest = next === undefined ? 0 : Math.floor((s % length) / next[1]);
  const head = `${Math.floor(s / length)}${GAP}${unit}`;
  return rest === 0 ? head : `${head} ${rest}${GAP}${next[0]}`;
}

export function bytes(value) {
  if (isNone(value)) return NONE;
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let index = 0;
  let scaled = value;
  while (scaled >= 999.5 && index < units.length - 1) {
    scaled /= 1000;
    index += 1;
  }
  return `${digits(scaled)}${GAP}${units[index]}`;
}

export const byteRate = (value) => (isNone(value) ? NONE : `${bytes(value)}/s`);
export const rate = (value, what = "") => (isNone(value) ? NONE : `${number(value)}${what}/s`);

/** A share as percent. */
export function percent(share) {
  if (isNone(share)) return NONE;
  const value = share * 100;
  if (value !== 0 && Math.abs(value) < 1) return `${value.toFixed(1)}${GAP}%`;
  return `${count(value)}${GAP}%`;
}

/** Percent of what was kept: rounded down, so that 100 % means every single one. */
export function attainment(share) {
  if (isNone(share)) return NONE;
  if (share >= 1) return `100${GAP}%`;
  const steps = share >= 0.99 ? 100 : 10;
  const value = Math.floor(share * 100 * steps + 1e-6) / steps;
  return `${value.toFixed(share >= 0.99 ? 2 : 1)}${GAP}%`;
}

export const times = (value) => (isNone(value) ? NONE : `${digits(value)}${GAP}×`);

const pad = (value) => String(value).padStart(2, "0");

/** Local time of day, 16:20:31. */
export function clock(unixS, withSeconds = true) {
  const date = new Date(unixS * 1000);
  const minutes = `${pad(date.getHours())}:${pad(date.getMinutes())}`;
  return withSeconds ? `${minutes}:${pad(date.getSeconds())}` : minutes;
}

const DAYS = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

export const day = (unixS) => DAYS[new Date(unixS * 1000).getDay()];

/** With the day where it is not today's. */
export function moment(unixS, nowS) {
  const isToday = new Date(unixS * 1000).toDateString() === new Date(nowS * 1000).toDateString();
  return isToday ? clock(unixS) : `${day(unixS)} ${clock(unixS)}`;
}

export function plural(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

/** a, b and c. */
export function list(words) {
  if (words.length < 2) return words.join("");
  return `${words.slice(0, -1).join(", ")} and ${words[words.length - 1]}`;
}

/** Words of the coordinator as a sentence. */
export function sentence(text) {
  if (text === "") return "";
  const head = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(head) ? head : `${head}.`;
}

export const shortId = (requestId) => requestId.slice(0, 8);
