/**
 * A chart over time in SVG. All charts share one cursor: a moment under the pointer, or chosen with
 * the arrow keys, is marked in each of them, and their legends show the values of then.
 */

import { el, setAttr, setClass, setText, svg } from "./dom.js";
import { clock, day } from "./format.js";
import {
  areaPath,
  barPath,
  linePath,
  logTicks,
  nearest,
  stack,
  timeTicks,
  valueTicks,
} from "./scales.js";

const LEFT = 46;
const RIGHT = 10;
const TOP = 8;
const BOTTOM = 18;

/** The moment that all charts mark; null: now. */
const cursor = { t: null, charts: new Set(), isPlanned: false };

function point(t) {
  if (cursor.t === t) return;
  cursor.t = t;
  if (cursor.isPlanned) return;
  cursor.isPlanned = true;
  requestAnimationFrame(() => {
    cursor.isPlanned = false;
    for (const chart of cursor.charts) chart.showCursor();
  });
}

/**
 * `spec`: title, height (at least), format(value), numTicks, isWhole, isLog, max, least (the top
 * where all is zero), zero (a text for that), isStacked, isStep, onMark(mark or null), and `rows`:
 * key, label, tone (a class), kind (line, area, bars), look (thin, dashed), isHatched, isLoose (no
 * part of the stack).
 */
export class TimeChart {
  constructor(figure, spec, live) {
    this.figure = figure;
    this.spec = { numTicks: 3, height: 132, kind: "line", ...spec };
    this.live = live;
    this.times = [];
    this.width = 0;
    this.height = 0;
    this.limits = [];
    this.marks = [];
    this.build();
    this.observer = new ResizeObserver(([entry]) => {
      const [width, height] = [entry.contentRect.width, entry.contentRect.height].map(Math.round);
      if (width === 0 || (width === this.width && height === this.height)) return;
      [this.width, this.height] = [width, height];
      this.draw();
    });
    this.observer.observe(this.plot);
    cursor.charts.add(this);
  }

  build() {
    const { spec } = this;
    this.items = spec.rows.map((row) => {
      const value = el("span", { class: "legend-value" });
      const looks = [row.kind || spec.kind, row.tone];
      if (row.isHatched) looks.push("hatched");
      if (row.look) looks.push(row.look);
      const swatch = el("span", { class: `swatch ${looks.join(" ")}` });
      return { row, value, item: el("li", {}, swatch, el("span", {}, row.label), value) };
    });
    const legend = el("ul", { class: "legend" }, ...this.items.map((i) => i.item));
    this.svg = svg("svg", {
      class: "plot",
      tabindex: "0",
      role: "group",
      "aria-roledescription": "chart over time",
    });
    this.plot = el("div", { class: "plot-box" }, this.svg, el("p", { class: "plot-empty" }));
    this.plot.style.minHeight = `${spec.height}px`;
    this.grid = svg("path", { class: "grid" });
    this.moments = svg("path", { class: "moments" });
    this.fills = spec.rows.map((row) => svg("path", { class: `fill ${row.tone}` }));
    this.textures = spec.rows.map(() => svg("path", { class: "texture" }));
    // By CSSOM: in a style sheet the address would be one relative to that sheet.
    for (const texture of this.textures) texture.style.fill = "url(#hatch)";
    this.lines = spec.rows.map((row) => {
      return svg("path", { class: `line ${row.tone} ${row.look ?? ""}` });
    });
    this.bounds = svg("g", { class: "bounds" });
    this.labels = svg("g", { class: "ticks" });
    this.flags = svg("g", { class: "flags" });
    this.needle = svg("path", { class: "needle" });
    this.moment = svg("text", { class: "moment", y: TOP + 9 });
    this.svg.append(
      this.grid,
      ...this.fills,
      ...this.textures,
      ...this.lines,
      this.moments,
      this.bounds,
      this.labels,
      this.needle,
      this.moment,
      this.flags,
    );
    this.listen();
    this.figure.append(legend, this.plot);
  }

  listen() {
    this.svg.addEventListener("pointermove", (event) => {
      const box = this.svg.getBoundingClientRect();
      const share = (event.clientX - box.left - LEFT) / Math.max(1, this.width - LEFT - RIGHT);
      this.pointAt(this.from + share * (this.to - this.from));
    });
    this.svg.addEventListener("pointerleave", () => point(null));
    this.svg.addEventListener("blur", () => point(null));
    this.svg.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 };
      if (event.key === "Escape") point(null);
      if (!(event.key in moves) || this.times.length === 0) return;
      event.preventDefault();
      const last = this.times.length - 1;
      const index = cursor.t === null ? last : nearest(this.times, cursor.t);
      const next = this.times[Math.max(0, Math.min(last, index + moves[event.key]))];
      point(next);
      this.readOut(next);
    });
  }

  pointAt(t) {
    const index = nearest(this.times, t);
    point(index < 0 ? null : this.times[index]);
  }

  readOut(t) {
    const index = nearest(this.times, t);
    const parts = this.spec.rows.map((row) => `${row.label} ${this.valueOf(row, index)}`);
    setText(this.live, `${clock(t)}: ${parts.join(", ")}`);
  }

  valueOf(row, index) {
    const values = this.values[row.key];
    const value = index < 0 || values === undefined ? null : values[index];
    return value === null || value === undefined ? "–" : this.spec.format(value);
  }

  /** Samples, the window, lines that are not to be crossed, and moments: {unix_s, label}. */
  update(
    series,
    from,
    to,
    { limits = [], marks = [], empty = "No samples in this window yet" } = {},
  ) {
    this.times = series.unix_s;
    this.values = series.values;
    // In a quiet second nothing ends and nothing is measured: a line goes on over such gaps.
    this.gapS = Math.max(series.step_s * 2.5, 12);
    this.from = from;
    this.to = to;
    this.limits = limits.filter((limit) => limit.value > 0);
    this.marks = marks.filter((mark) => mark.unix_s >= from && mark.unix_s <= to);
    this.emptyText = empty;
    if (this.width > 0) this.draw();
  }

  draw() {
    if (this.from === undefined) return;
    const { spec, width, height } = this;
    setAttr(this.svg, "width", width);
    setAttr(this.svg, "height", height);
    const rows = spec.rows.map((row) => this.values[row.key] || []);
    const edges = this.edges(rows);
    const hasData = rows.some((row) => row.some((value) => value !== null));
    const isZero = spec.zero !== undefined && rows.every((row) => row.every((value) => !value));
    setText(this.plot.lastElementChild, !hasData ? this.emptyText : isZero ? spec.zero : "");
    const ticks = this.ticks(edges.map((edge) => edge.high));
    const top = ticks[ticks.length - 1];
    const bottom = height - BOTTOM;
    const log = (value) =>
      Math.log(Math.max(value, ticks[0]) / ticks[0]) / Math.log(top / ticks[0]);
    this.x = (t) => LEFT + ((t - this.from) / (this.to - this.from)) * (width - LEFT - RIGHT);
    this.y = (value) => bottom - (spec.isLog ? log(value) : value / top) * (bottom - TOP);
    this.drawRows(edges);
    this.drawAxes(hasData ? ticks : [0]);
    this.drawLimits(top, hasData ? this.limits : []);
    this.drawMarks();
    this.showCursor();
  }

  /** Lower and upper edge of each row; of a stack, rows that are `isLoose` are no part. */
  edges(rows) {
    const { spec } = this;
    const base = new Array(this.times.length).fill(0);
    if (!spec.isStacked) return rows.map((high) => ({ low: base, high }));
    const piled = stack(
      rows.filter((_, i) => !spec.rows[i].isLoose),
      this.times.length,
    );
    return rows.map((high, i) => (spec.rows[i].isLoose ? { low: base, high } : piled.shift()));
  }

  ticks(rows) {
    const { spec } = this;
    if (spec.max) return valueTicks(spec.max, spec.numTicks, spec.isWhole);
    if (spec.isLog) return this.logTicks(rows);
    let max = 0;
    for (const row of rows) for (const value of row) if (value > max) max = value;
    // A limit far above the data would flatten it: then its label alone says where it is.
    for (const { value } of this.limits) if (value < max * 3) max = Math.max(max, value * 1.05);
    return valueTicks(max || spec.least || 1, spec.numTicks, spec.isWhole);
  }

  logTicks(rows) {
    let [min, max] = [Infinity, 0];
    const limits = this.limits.map((limit) => limit.value);
    for (const row of [...rows, limits]) {
      for (const value of row)
        if (value > 0) [min, max] = [Math.min(min, value), Math.max(max, value)];
    }
    return max === 0 ? [1, 10] : logTicks(min, max);
  }

  drawRows(edges) {
    const { spec, x, y, gapS } = this;
    const last = this.times[this.times.length - 1];
    const end = last !== undefined && this.to - last <= gapS ? this.to : last;
    const space = { x, y, gapS, end, isStep: spec.isStep };
    spec.rows.forEach((row, i) => {
      const kind = row.kind || spec.kind;
      const { low, high } = edges[i];
      // A layer of nothing has no edge: it would look like one of its neighbour.
      const line =
        spec.isStacked && !row.isLoose
          ? high.map((value, k) => (value === null || value > low[k] ? value : NaN))
          : high;
      const area = kind === "area" ? areaPath(this.times, low, high, space) : "";
      setAttr(this.fills[i], "d", area);
      setAttr(this.textures[i], "d", row.isHatched ? area : "");
      setAttr(
        this.lines[i],
        "d",
        kind === "bars" ? barPath(this.times, line, space) : linePath(this.times, line, space),
      );
      setClass(this.lines[i], "bars", kind === "bars");
      if (kind === "bars") {
        const slot = (this.width - LEFT - RIGHT) / Math.max(30, this.times.length);
        this.lines[i].style.strokeWidth = `${Math.max(1.5, Math.min(6, slot * 0.7))}px`;
      }
    });
  }

  drawAxes(ticks) {
    const { spec, width } = this;
    const wanted = (ticks.length < 2 ? [] : ticks).map((value) => ({
      x: LEFT - 6,
      y: this.y(value) + 3.5,
      text: spec.format(value),
      anchor: "end",
    }));
    const times = timeTicks(this.from, this.to, Math.max(2, Math.floor((width - LEFT) / 84)));
    for (const t of times.ticks) {
      const x = this.x(t);
      if (x < LEFT + 8 || x > width - RIGHT - 12) continue;
      const text = times.step >= 43_200 ? day(t) : clock(t, times.step < 60);
      const label =
        times.step < 43_200 && this.to - this.from > 86_400 ? `${day(t)} ${text}` : text;
      wanted.push({ x, y: this.height - 4, text: label, anchor: "middle" });
    }
    setAttr(
      this.grid,
      "d",
      ticks.map((value) => `M${LEFT},${Math.round(this.y(value)) + 0.5}H${width - RIGHT}`).join(""),
    );
    setTexts(this.labels, wanted);
  }

  drawLimits(top, limits) {
    const wanted = [];
    let path = "";
    for (const { value, label } of limits) {
      const isAbove = value > top;
      const y = isAbove ? TOP : this.y(value);
      if (!isAbove) path += `M${LEFT},${y}H${this.width - RIGHT}`;
      const text = isAbove ? `${label}, above ↑` : label;
      const dy = y > TOP + 14 ? -4 : 12;
      wanted.push({ x: this.width - RIGHT - 2, y: y + dy, text, anchor: "end" });
    }
    if (this.limitPath === undefined) {
      this.limitPath = svg("path", { class: "limit" });
      this.limitTexts = svg("g", { class: "limit-label" });
      this.bounds.append(this.limitPath, this.limitTexts);
    }
    setAttr(this.limitPath, "d", path);
    setTexts(this.limitTexts, wanted);
  }

  drawMarks() {
    const bottom = this.height - BOTTOM;
    setAttr(
      this.moments,
      "d",
      this.marks
        .map((mark) => `M${Math.round(this.x(mark.unix_s)) + 0.5},${TOP}V${bottom}`)
        .join(""),
    );
    if (!this.spec.onMark) return;
    while (this.flags.childElementCount < this.marks.length) this.flags.append(this.makeFlag());
    while (this.flags.childElementCount > this.marks.length) this.flags.lastElementChild.remove();
    this.marks.forEach((mark, i) => {
      const flag = this.flags.children[i];
      flag.mark = mark;
      setAttr(flag, "transform", `translate(${this.x(mark.unix_s).toFixed(1)} ${TOP})`);
      setAttr(flag, "aria-label", `${clock(mark.unix_s)}: ${mark.label}`);
      setText(flag.firstElementChild, `${clock(mark.unix_s)}  ${mark.label}`);
    });
  }

  makeFlag() {
    const flag = svg(
      "g",
      { class: "flag", tabindex: "0", role: "img" },
      svg("title"),
      svg("circle", { class: "flag-reach", r: 11, cy: 3 }),
      svg("path", { d: "M-5,-3H5L0,7Z" }),
    );
    for (const event of ["pointerenter", "focus"]) {
      flag.addEventListener(event, () => this.spec.onMark(flag.mark));
    }
    for (const event of ["pointerleave", "blur"]) {
      flag.addEventListener(event, () => this.spec.onMark(null));
    }
    return flag;
  }

  showCursor() {
    if (this.x === undefined) return;
    const last = this.times.length - 1;
    const isPast = cursor.t !== null && cursor.t >= this.from && cursor.t <= this.to;
    const index = isPast ? nearest(this.times, cursor.t) : last;
    const x = isPast && index >= 0 ? Math.round(this.x(this.times[index])) + 0.5 : null;
    setAttr(this.needle, "d", x === null ? "" : `M${x},${TOP}V${this.height - BOTTOM}`);
    this.showMoment(x, index);
    for (const { row, value } of this.items) setText(value, this.valueOf(row, index));
    if (cursor.t === null) this.describe(index);
  }

  /** The time beside the needle, on the side that has room. */
  showMoment(x, index) {
    setText(this.moment, x === null ? "" : clock(this.times[index]));
    if (x === null) return;
    const isRight = x > this.width - 70;
    setAttr(this.moment, "x", x + (isRight ? -5 : 5));
    setAttr(this.moment, "text-anchor", isRight ? "end" : "start");
  }

  /** The chart in words, for who does not see it. */
  describe(index) {
    const parts = this.spec.rows.map((row) => {
      const known = (this.values[row.key] || []).filter((value) => value !== null);
      if (known.length === 0) return `${row.label} not known`;
      const [low, high] = [Math.min(...known), Math.max(...known)].map(this.spec.format);
      return `${row.label} now ${this.valueOf(row, index)}, between ${low} and ${high}`;
    });
    const limits = this.limits.map((limit) => limit.label);
    setAttr(
      this.svg,
      "aria-label",
      [`${this.spec.title}: ${parts.join("; ")}`, ...limits].join(". "),
    );
  }
}

/** Text labels in a group, their nodes reused. */
function setTexts(group, wanted) {
  while (group.childElementCount < wanted.length) group.append(svg("text"));
  while (group.childElementCount > wanted.length) group.lastElementChild.remove();
  wanted.forEach(({ x, y, text, anchor }, i) => {
    const node = group.children[i];
    setAttr(node, "x", x.toFixed(1));
    setAttr(node, "y", y.toFixed(1));
    setAttr(node, "text-anchor", anchor);
    setText(node, text);
  });
}
