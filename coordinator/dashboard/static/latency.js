/** Where the time to the first token goes, and the time between tokens, for one SLA class. */

import { Keyed, byId, el, setAttr, setClass, setLeft, setText, setWidth } from "./dom.js";
import { list, ms, percent } from "./format.js";
import { TimeChart } from "./timechart.js";
import { STAGES } from "./words.js";

const POINTS = ["p50", "p95", "p99"];
const OF_TTFT = STAGES.slice(0, 2);
const URGENCY = { violated: 0, "at risk": 1, ok: 2, "no traffic": 3 };

export class Latency {
  constructor(live) {
    this.picked = null;
    this.classes = new Keyed(
      byId("latency-classes"),
      (c) => c.sla_class,
      (c) => this.makeClass(c.sla_class),
      (button, c) => setAttr(button, "aria-pressed", String(c.sla_class === this.name)),
    );
    this.bars = new Waterfall(byId("waterfall"));
    const stages = STAGES.map(({ key, label, tone, isHatched }) => {
      return {
        key: `${key}_p50_ms`,
        label: label.replace("decode ", ""),
        tone,
        isHatched,
        kind: "area",
      };
    });
    this.ttft = new TimeChart(
      byId("chart-ttft"),
      {
        title: "Medians of the stages and of the time to first token",
        height: 150,
        isStacked: true,
        format: ms,
        rows: [
          ...stages,
          { key: "ttft_p50_ms", label: "TTFT", tone: "tone-text", isLoose: true },
          { key: "ttft_p99_ms", label: "p99", tone: "tone-text", isLoose: true, look: "thin" },
        ],
      },
      live,
    );
    byId("chart-ttft").classList.add("solid-areas", "with-lines");
    this.itl = new TimeChart(
      byId("chart-itl"),
      {
        title: "Time between tokens",
        height: 190,
        format: ms,
        isLog: true,
        rows: [
          { key: "tpot_p50_ms", label: "TPOT p50", tone: "tone-decode" },
          { key: "tpot_p99_ms", label: "TPOT p99", tone: "tone-decode", look: "thin" },
          { key: "max_itl_p99_ms", label: "longest gap p99", tone: "tone-soft", look: "thin" },
        ],
      },
      live,
    );
    this.rows = new Keyed(byId("itl-rows"), (r) => r.label, makeQuantiles, updateQuantiles);
  }

  makeClass(name) {
    const choose = () => {
      this.picked = name;
      this.snapshot(this.last);
      if (this.lastSeries) this.series(this.lastSeries);
    };
    return el("button", { type: "button", on: { click: choose } }, name);
  }

  snapshot(state) {
    this.last = state;
    const { classes } = state.snapshot;
    this.view = classes.find((c) => c.sla_class === this.picked) || most(classes);
    if (this.view === undefined) return;
    this.name = this.view.sla_class;
    this.classes.update(classes);
    const { stages, ttft_ms, tpot_ms } = this.view;
    this.bars.update(stages, ttft_ms);
    setText(byId("ttft-say"), sayTtft(stages, ttft_ms));
    setText(byId("itl-say"), sayItl(stages, tpot_ms, this.name));
    this.rows.update([
      { label: "TPOT", quantiles: stages.tpot, limit: tpot_ms },
      { label: "Longest gap", quantiles: stages.max_itl, limit: null },
    ]);
  }

  series(state) {
    this.lastSeries = state;
    if (this.view === undefined) return;
    const { series, from, to, marks } = state;
    const { ttft_ms, tpot_ms, sla_class: name } = this.view;
    const ttft = [{ value: ttft_ms, label: `SLA ${name} ${ms(ttft_ms)}` }];
    const tpot = [{ value: tpot_ms, label: `SLA ${name} ${ms(tpot_ms)}` }];
    const empty = "No request ended in this window";
    this.ttft.update(series, from, to, { limits: ttft, marks, empty });
    this.itl.update(series, from, to, { limits: tpot, marks, empty });
  }
}

/** The class that an operator should see first: the most urgent, of these the busiest. */
function most(classes) {
  const rank = (c) => [URGENCY[c.verdict] ?? 3, -(c.windows["5m"]?.num_ended ?? 0)];
  return [...classes].sort((a, b) => rank(a)[0] - rank(b)[0] || rank(a)[1] - rank(b)[1])[0];
}

function sayTtft(stages, limit) {
  if (stages.ttft === null)
    return "No request of this class had a first token in the last 5 minutes.";
  const known = OF_TTFT.filter(({ key }) => stages[key] !== null);
  const total = known.reduce((sum, { key }) => sum + stages[key].p95, 0);
  const parts = known.map(
    ({ key, label }) => `${percent(stages[key].p95 / (total || 1))} ${label}`,
  );
  const share =
    stages.ttft.p95 <= limit ? `of the ${ms(limit)} promised` : `where ${ms(limit)} are promised`;
  return (
    `At p95 the first token takes ${ms(stages.ttft.p95)} ${share}` +
    `${parts.length > 0 ? `: ${list(parts)}` : ""}. ` +
    "Transfer and decode admission come after it, before the second token."
  );
}

function sayItl(stages, limit, name) {
  if (stages.tpot === null)
    return `No request of ${name} sent a second token in the last 5 minutes.`;
  const relation = stages.tpot.p95 <= limit ? "within" : "beyond";
  const pace = `a token every ${ms(stages.tpot.p95)}`;
  return `At p95 ${name} gets ${pace}, ${relation} the ${ms(limit)} promised.`;
}

function makeQuantiles({ label }) {
  const cells = Object.fromEntries([...POINTS, "limit"].map((key) => [key, el("td")]));
  const row = el("tr", {}, el("th", { scope: "row" }, label), ...Object.values(cells));
  row.parts = cells;
  return row;
}

function updateQuantiles(row, { quantiles, limit }) {
  for (const point of POINTS) {
    const value = quantiles === null ? null : quantiles[point];
    setText(row.parts[point], ms(value));
    setClass(row.parts[point], "late", limit !== null && value !== null && value > limit);
  }
  setText(row.parts.limit, limit === null ? "" : `≤ ${ms(limit)}`);
}

/** Stacked bars of the stages at p50, p95 and p99, with the SLA and the TTFT that was measured. */
class Waterfall {
  constructor(box) {
    this.values = STAGES.map(() => el("span", { class: "legend-value" }));
    const items = STAGES.map(({ label, tone, isHatched }, i) =>
      el(
        "li",
        {},
        el("span", { class: `swatch ${tone}${isHatched ? " hatched" : ""}` }),
        label,
        this.values[i],
      ),
    );
    this.sla = el("span");
    this.legend = el(
      "ul",
      { class: "legend waterfall-legend" },
      el("li", { class: "legend-scope" }, "p95"),
      ...items,
      el("li", {}, el("span", { class: "measured-key" }), "TTFT"),
    );
    this.axis = el("div", { class: "w-axis" }, this.sla);
    this.rows = POINTS.map((point) => {
      const parts = STAGES.map(({ tone, isHatched }) =>
        el("i", { class: `${tone}${isHatched ? " hatched" : ""}` }),
      );
      const limit = el("span", { class: "w-sla" });
      const measured = el("span", { class: "w-measured" });
      const track = el(
        "div",
        { class: "w-track", role: "img" },
        el("div", { class: "w-parts" }, ...parts),
        limit,
        measured,
      );
      const value = el("span", { class: "w-value" });
      return {
        point,
        parts,
        limit,
        measured,
        track,
        value,
        name: el("span", { class: "w-name" }, point),
      };
    });
    box.append(this.legend, this.axis, ...this.rows.flatMap((r) => [r.name, r.track, r.value]));
  }

  update(stages, limit) {
    const ends = POINTS.map((point) =>
      STAGES.reduce((sum, { key }) => sum + (stages[key]?.[point] ?? 0), 0),
    );
    const longest = Math.max(...ends, stages.ttft?.p99 ?? 0);
    const isNear = limit <= longest * 4 || longest === 0;
    const scale = (isNear ? Math.max(longest, limit * 1.04) : longest * 1.15) || 1;
    STAGES.forEach(({ key }, i) => setText(this.values[i], ms(stages[key]?.p95)));
    setText(this.sla, isNear ? `SLA ${ms(limit)}` : `SLA ${ms(limit)}, beyond this scale →`);
    setLeft(this.sla, isNear ? limit / scale : 1);
    setClass(this.sla, "at-end", !isNear || limit / scale > 0.85);
    for (const row of this.rows) this.updateRow(row, stages, { limit, scale, isNear });
  }

  updateRow(
    { point, parts, limit: line, measured, track, value },
    stages,
    { limit, scale, isNear },
  ) {
    const words = [];
    STAGES.forEach(({ key, label }, i) => {
      const time = stages[key]?.[point] ?? 0;
      setWidth(parts[i], time / scale);
      words.push(`${label} ${ms(time)}`);
      setAttr(parts[i], "title", `${label} ${ms(time)} at ${point}`);
    });
    setLeft(line, limit / scale);
    setClass(line, "hidden", !isNear);
    const ttft = stages.ttft === null ? null : stages.ttft[point];
    setLeft(measured, (ttft ?? 0) / scale);
    setClass(measured, "hidden", ttft === null);
    setText(value, ms(ttft));
    setClass(value, "late", ttft !== null && ttft > limit);
    setAttr(
      track,
      "aria-label",
      `${point}: first token after ${ms(ttft)}, SLA ${ms(limit)}; ${words.join(", ")}`,
    );
  }
}
