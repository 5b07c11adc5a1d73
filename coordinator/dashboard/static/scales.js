/** Arithmetic of charts: ticks at round values, and paths through samples. No DOM. */

const TIME_STEPS_S = [
  10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400,
];

/** The next of 1, 2, 2.5, 5 times a power of ten, so that ticks are round. */
export function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  const lead = rough / power;
  const nice = [1, 2, 2.5, 5, 10].find((value) => lead <= value + 1e-9);
  return nice * power;
}

/** Ticks from 0 to a round value at or above `max`; `isWhole`: no fractions. */
export function valueTicks(max, numTicks, isWhole) {
  let step = niceStep(Math.max(max, 1e-9) / numTicks);
  if (isWhole) step = Math.max(1, Math.ceil(step));
  const count = Math.max(1, Math.ceil(max / step - 1e-9));
  return Array.from({ length: count + 1 }, (_, index) => index * step);
}

/** Ticks of a logarithmic scale around [min, max] at 1, 2, 5 times powers of ten; at most six. */
export function logTicks(min, max) {
  const round = [];
  for (let power = Math.floor(Math.log10(min)); power <= Math.log10(max) + 1; power += 1) {
    for (const lead of [1, 2, 5]) round.push(Number((lead * 10 ** power).toPrecision(1)));
  }
  const first = round.findLastIndex((value) => value <= min * 1.001);
  const last = Math.max(
    first + 1,
    round.findIndex((value) => value >= max * 0.999),
  );
  const ticks = round.slice(first, last + 1);
  if (ticks.length <= 6) return ticks;
  const isTen = (value) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-9;
  return ticks.filter((value, i) => i === 0 || i === ticks.length - 1 || isTen(value));
}

/** The mean of the last `seconds` at each sample: single seconds count few requests. */
export function smooth(times, values, seconds) {
  let first = 0;
  let sum = 0;
  let num = 0;
  return values.map((value, i) => {
    if (value !== null) [sum, num] = [sum + value, num + 1];
    for (; times[i] - times[first] >= seconds; first += 1) {
      if (values[first] !== null) [sum, num] = [sum - values[first], num - 1];
    }
    return num === 0 ? null : Math.max(0, sum / num);
  });
}

/** Round local times within [from, to], at most `most` of them. */
export function timeTicks(from, to, most) {
  const step = TIME_STEPS_S.find((value) => (to - from) / value <= most) || 86_400;
  const offset = new Date(to * 1000).getTimezoneOffset() * 60;
  const ticks = [];
  for (let t = Math.ceil((from - offset) / step) * step + offset; t <= to; t += step) ticks.push(t);
  return { ticks, step };
}

const at = (value) => Math.round(value * 10) / 10;

/** Runs of samples that are known and near each other, as lists of their indices; NaN cuts. */
export function runs(times, values, gapS) {
  const found = [];
  let last = null;
  for (let i = 0; i < times.length; i += 1) {
    if (Number.isNaN(values[i])) last = null;
    if (values[i] === null || values[i] === undefined || Number.isNaN(values[i])) continue;
    if (last === null || times[i] - times[last] > gapS) found.push([]);
    found[found.length - 1].push(i);
    last = i;
  }
  return found;
}

/** Points of a run; a step holds its value until the next sample, the last one until `end`. */
function points(times, values, run, { x, y, gapS, isStep, end }) {
  return run.flatMap((i) => {
    const height = at(y(values[i]));
    const corner = `${at(x(times[i]))},${height}`;
    if (!isStep) return [corner];
    const next = i + 1 < times.length ? Math.min(times[i + 1], times[i] + gapS) : end;
    return [corner, `${at(x(next))},${height}`];
  });
}

/** The outline of a line; a lone sample becomes a dot. */
export function linePath(times, values, space) {
  return runs(times, values, space.gapS)
    .map((run) => {
      const parts = points(times, values, run, space);
      return `M${parts.join("L")}${parts.length === 1 ? "h.1" : ""}`;
    })
    .join("");
}

/** The area between two rows of values (`low` is never null where `high` is known). */
export function areaPath(times, low, high, space) {
  return runs(times, high, space.gapS)
    .map((run) => {
      const top = points(times, high, run, space);
      const bottom = points(times, low, run, space).reverse();
      return `M${top.join("L")}L${bottom.join("L")}Z`;
    })
    .join("");
}

/** A stroke from the base to each value. */
export function barPath(times, values, { x, y }) {
  const parts = [];
  for (let i = 0; i < times.length; i += 1) {
    if (values[i]) parts.push(`M${at(x(times[i]))},${at(y(0))}V${at(y(values[i]))}`);
  }
  return parts.join("");
}

/** Rows on top of each other: for each one its lower and upper edges. */
export function stack(rows, length) {
  let low = new Array(length).fill(0);
  return rows.map((row) => {
    const high = low.map((base, i) => {
      const isKnown = rows.some((other) => other[i] !== null && other[i] !== undefined);
      return isKnown ? (base || 0) + (row[i] || 0) : null;
    });
    const edges = { low, high };
    low = high.map((value) => value || 0);
    return edges;
  });
}

/** Index of the sample nearest to a time; -1 without samples. */
export function nearest(times, t) {
  let low = 0;
  let high = times.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] < t) low = middle + 1;
    else high = middle;
  }
  if (low > 0 && t - times[low - 1] < times[low] - t) low -= 1;
  return times.length === 0 ? -1 : low;
}
