/** The verdict: one sentence, the figures of now, and a row for each SLA class. */

import { Keyed, byId, el, icon, setAttr, setClass, setIcon, setText, setWidth } from "./dom.js";
import { attainment, count, list, ms, number, percent, plural, sentence, times } from "./format.js";
import { VERDICTS, WINDOWS } from "./words.js";

const STATES = ["down", "slow", "draining"];
const WORST_FIRST = ["violated", "at risk", "ok", "no traffic"];

export class Verdicts {
  constructor() {
    this.figures = new Keyed(byId("figures"), (f) => f.label, makeFigure, updateFigure);
    this.rows = new Keyed(byId("classes"), (c) => c.sla_class, makeRow, updateRow);
  }

  snapshot({ snapshot, windowName }) {
    const { tone, icon: shape, title, why } = judge(snapshot);
    setAttr(byId("headline-box"), "data-verdict", tone);
    setIcon(byId("headline-box"), shape);
    setText(byId("headline"), title);
    setText(byId("headline-why"), why);
    this.figures.update(figuresOf(snapshot));
    this.rows.update(snapshot.classes.map((verdict) => ({ ...verdict, windowName })));
    return { tone, title };
  }
}

/** The state of the whole deployment in a sentence, and why in another. */
function judge(snapshot) {
  const serving = snapshot.nodes.filter((node) => node.state !== "down");
  const problem = explainMissing(serving, snapshot);
  if (problem !== null) return problem;
  const by = (verdict) => snapshot.classes.filter((c) => c.verdict === verdict);
  const worst = WORST_FIRST.find((verdict) => by(verdict).length > 0) || "no traffic";
  const isWell = worst === "ok" || worst === "no traffic";
  const why = isWell
    ? [calm(snapshot, worst)]
    : by(worst).map((c, _, all) => brief(c, all.length > 1));
  const downs = trouble(snapshot, ["down"]);
  // Promises that are kept without a node that is down are kept with less in reserve.
  const { tone, icon: shape } = VERDICTS[isWell && downs.length > 0 ? "at risk" : worst];
  const but = isWell && downs.length > 0 ? `, but ${downs[0].slice(0, -1)}` : "";
  const rest = trouble(snapshot, but === "" ? STATES : STATES.slice(1));
  return {
    tone,
    icon: shape,
    title: titleOf(worst, by(worst)) + but,
    why: [...why, ...rest].join(" "),
  };
}

function titleOf(worst, classes) {
  const names = list(classes.map((c) => c.sla_class));
  const isOne = classes.length === 1;
  if (worst === "violated") return `${names} ${isOne ? "misses its SLA" : "miss their SLAs"}`;
  if (worst === "at risk") return `${names} ${isOne ? "is" : "are"} at risk`;
  return worst === "ok" ? "Every SLA in use is kept" : "Ready, without traffic";
}

function explainMissing(serving, snapshot) {
  const roles = new Set(serving.map((node) => node.role));
  if (serving.length === 0) {
    const isNew = snapshot.nodes.length === 0;
    return {
      tone: isNew ? "none" : "bad",
      icon: isNew ? "none" : "bad",
      title: isNew ? "No nodes yet" : "Nothing is served: every node is down",
      why: "Start a prefill node and a decode node with this coordinator's address.",
    };
  }
  for (const role of ["prefill", "decode"]) {
    if (roles.has(role) || roles.has("mixed")) continue;
    return {
      tone: "bad",
      icon: "bad",
      title: `Nothing is served: no ${role} node`,
      why: ["Start one, or give a node that role below.", ...trouble(snapshot, STATES)].join(" "),
    };
  }
  return null;
}

/** The numbers of a class that is not well; its row says more. */
function brief(verdict, isNamed) {
  const name =
    ["5m", "1h", "3d"].find((window) => windowOf(verdict, window).attainment !== null) || "5m";
  const kept = attainment(windowOf(verdict, name).attainment);
  const stage = verdict.limiting_stage === null ? "" : `, held up by ${verdict.limiting_stage}`;
  return (
    `${isNamed ? `${verdict.sla_class}: ` : ""}${kept} in time over ${WINDOWS[name].label} where ` +
    `${percent(verdict.attainment)} are promised${stage}.`
  );
}

function calm(snapshot, worst) {
  const { num_prefill: p, num_decode: d, num_mixed: m } = snapshot.balance;
  const nodes = [
    [p, "prefill"],
    [d, "decode"],
    [m, "mixed"],
  ]
    .filter(([n]) => n > 0)
    .map(([n, role]) => `${n} ${role}`);
  if (worst === "no traffic")
    return `${list(nodes)} ${p + d + m === 1 ? "node waits" : "nodes wait"} for requests.`;
  const ended = snapshot.classes.reduce((sum, c) => sum + windowOf(c, "5m").num_ended, 0);
  const kept = snapshot.classes.reduce((sum, c) => sum + windowOf(c, "5m").num_attained, 0);
  const inTime = `${plural(kept, "request")} of ${count(ended)} in time over the last 5 minutes`;
  return `${inTime}, by ${list(nodes)} nodes.`;
}

/** Sentences about the nodes in each of these states. */
function trouble(snapshot, states) {
  return states.flatMap((state) => {
    const names = snapshot.nodes.filter((node) => node.state === state).map((n) => n.node_id);
    if (names.length === 0) return [];
    const shown = names.length > 4 ? [...names.slice(0, 3), `${names.length - 3} more`] : names;
    return [`${list(shown)} ${names.length === 1 ? "is" : "are"} ${state}.`];
  });
}

const NO_WINDOW = {
  num_ended: 0,
  num_attained: 0,
  num_failed: 0,
  num_shed: 0,
  attainment: null,
  burn_rate: null,
};
const windowOf = (verdict, name) => verdict.windows[name] || NO_WINDOW;

function figuresOf({ rates, num_live, num_queued, nodes }) {
  const up = nodes.filter((node) => node.state !== "down").length;
  return [
    { label: "goodput", value: number(rates.goodput), unit: "req/s" },
    { label: "throughput", value: number(rates.requests), unit: "req/s" },
    { label: "shed", value: number(rates.shed), unit: "req/s", isAlarm: rates.shed > 0 },
    { label: "failed", value: number(rates.failed), unit: "req/s", isAlarm: rates.failed > 0 },
    { label: "output", value: number(rates.output_tokens), unit: "tok/s" },
    { label: "live requests", value: count(num_live), unit: "" },
    { label: "queued", value: count(num_queued), unit: "" },
    {
      label: "nodes up",
      value: count(up),
      unit: `of ${count(nodes.length)}`,
      isAlarm: up < nodes.length,
    },
  ];
}

function makeFigure({ label }) {
  const value = el("span");
  const unit = el("small");
  const box = el("div", { class: "figure" }, el("dt", {}, label), el("dd", {}, value, unit));
  box.parts = { value, unit };
  return box;
}

function updateFigure(box, { value, unit, isAlarm = false }) {
  setText(box.parts.value, value);
  setText(box.parts.unit, unit);
  setClass(box, "alarm", isAlarm);
}

function makeRow({ sla_class }) {
  const shape = icon("none");
  const verdict = el("span", { class: "class-verdict" });
  const targets = el("p", { class: "class-targets" });
  const head = el(
    "div",
    { class: "class-head" },
    shape,
    el(
      "div",
      {},
      el("p", {}, el("span", { class: "class-name" }, sla_class), " ", verdict),
      targets,
    ),
  );
  const windows = Object.entries(WINDOWS).map(([name, { label }]) => {
    const kept = el("p", { class: "kept" });
    const burn = el("p", { class: "kept-sub" });
    const lost = el("p", { class: "kept-sub" });
    const cell = el(
      "td",
      { role: "cell", "data-window": name, "data-label": label },
      kept,
      burn,
      lost,
    );
    return { name, cell, kept, burn, lost };
  });
  const fill = el("i");
  const meter = el(
    "div",
    { class: "budget", role: "meter", "aria-valuemin": "0", "aria-valuemax": "100" },
    fill,
  );
  const left = el("p");
  const stage = el("p", { class: "stage-name" });
  const why = el("p", { class: "explanation" });
  const row = el(
    "tr",
    { role: "row" },
    el("td", { role: "cell" }, head),
    ...windows.map((w) => w.cell),
    el("td", { role: "cell" }, meter, left),
    el("td", { role: "cell" }, stage, why),
  );
  row.parts = { head, verdict, targets, windows, fill, meter, left, stage, why };
  return row;
}

function updateRow(row, view) {
  const { head, verdict, targets, windows, stage, why } = row.parts;
  const { tone, icon: shape, word } = VERDICTS[view.verdict] || VERDICTS["no traffic"];
  setIcon(head, shape);
  setAttr(head.firstElementChild, "class", `icon t-${tone}`);
  setAttr(verdict, "class", `class-verdict t-${tone}`);
  setText(verdict, word);
  setText(
    targets,
    `${percent(view.attainment)} within TTFT ${ms(view.ttft_ms)}, TPOT ${ms(view.tpot_ms)}`,
  );
  for (const { name, cell, kept, burn, lost } of windows) {
    const window = windowOf(view, name);
    setText(kept, attainment(window.attainment));
    setClass(kept, "low", window.attainment !== null && window.attainment < view.attainment);
    setText(burn, window.burn_rate === null ? "no requests" : `burn ${times(window.burn_rate)}`);
    setClass(burn, "hot", window.burn_rate !== null && window.burn_rate > 1);
    setText(lost, lostOf(window));
    setClass(cell, "is-chosen", name === view.windowName && window.attainment !== null);
  }
  updateBudget(row.parts, view);
  setText(stage, view.limiting_stage === null ? "" : capital(view.limiting_stage));
  setText(why, sentence(view.explanation));
}

function updateBudget({ fill, meter, left }, { budget_left: budget }) {
  const isKnown = budget !== null;
  setWidth(fill, isKnown ? budget : 0);
  setClass(meter, "low", isKnown && budget < 0.25 && budget >= 0);
  setClass(meter, "spent", isKnown && budget < 0);
  setAttr(meter, "aria-valuenow", isKnown ? Math.round(Math.max(0, budget) * 100) : null);
  const text = !isKnown
    ? "not in use"
    : budget < 0
      ? `overspent by ${percent(-budget)}`
      : `${percent(budget)} left`;
  setAttr(meter, "aria-label", `Error budget: ${text}`);
  setText(left, text);
  setClass(left, "hot", isKnown && budget < 0);
}

function lostOf({ num_shed: shed, num_failed: failed }) {
  const parts = [];
  if (shed > 0) parts.push(`${number(shed)} shed`);
  if (failed > 0) parts.push(`${number(failed)} failed`);
  return parts.join(", ");
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
