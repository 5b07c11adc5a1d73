/** Wires the page: snapshots each second and samples now and then, to every panel in one pass. */

import { Orders } from "./actions.js";
import { Balance } from "./balance.js";
import { byId, el, setAttr, setText } from "./dom.js";
import { Events } from "./events.js";
import { Flow } from "./flow.js";
import { clock, count, duration } from "./format.js";
import { listen } from "./keyboard.js";
import { Latency } from "./latency.js";
import { Link } from "./link.js";
import { Memory } from "./memory.js";
import { Nodes } from "./nodes.js";
import { Record } from "./record.js";
import { Requests } from "./requests.js";
import { Verdicts } from "./verdicts.js";
import { WINDOWS } from "./words.js";

const THEME = "tandem.theme";
const NOTICE_MS = 15_000;
const LEAST_S = 60;

const state = { snapshot: null, series: null, windowName: "5m", from: 0, to: 0, marks: [] };
let heardAt = 0;
let isHeld = false;
let isPlanned = false;
let seriesAskedAt = -Infinity;
let incarnation = null;
let noticeTimer = null;

const live = byId("live");
const link = new Link({ onSnapshot, onState });
const events = new Events();
const verdicts = new Verdicts();
const record = new Record(link, (requestId, outcome) => {
  requests.choose(requestId);
  history.replaceState(null, "", `#request=${requestId}`);
  setText(live, `Request ${requestId.slice(0, 8)}: ${outcome}`);
});
const requests = new Requests(link, (requestId) => record.open(requestId));
const panels = [
  verdicts,
  new Balance(live),
  new Latency(live),
  new Memory(live),
  new Flow(live),
  new Nodes(new Orders(link, notify)),
  requests,
  record,
  events,
];

// --- what comes in ------------------------------------------------------------------------------

function onSnapshot(snapshot) {
  heardAt = performance.now();
  if (incarnation !== null && incarnation !== snapshot.coordinator_incarnation) {
    notify(
      `The coordinator restarted ${duration(snapshot.uptime_s)} ago. Requests that ran went on; ` +
        "rates and the charts of 5 minutes begin anew.",
      "risk",
    );
    seriesAskedAt = -Infinity;
  }
  if (incarnation === null) openLinked();
  incarnation = snapshot.coordinator_incarnation;
  state.snapshot = snapshot;
  events.take(snapshot.events, snapshot.unix_s);
  plan();
}

/** One pass for what came since the last frame; none while nobody looks. */
function plan() {
  if (isPlanned || isHeld || document.hidden || state.snapshot === null) return;
  isPlanned = true;
  requestAnimationFrame(() => {
    isPlanned = false;
    render();
  });
}

function render() {
  const { snapshot } = state;
  setText(byId("model"), snapshot.model ?? "");
  for (const panel of panels) panel.snapshot?.(state);
  document.title = titleOf(snapshot);
  setText(byId("foot"), footOf(snapshot));
  const { refreshS } = WINDOWS[state.windowName];
  if (performance.now() - seriesAskedAt > refreshS * 1000 - 200) loadSeries();
}

function titleOf(snapshot) {
  const bad = snapshot.classes.filter((c) => c.verdict === "violated").length;
  const risk = snapshot.classes.filter((c) => c.verdict === "at risk").length;
  const mark = bad > 0 ? `(${bad} violated) ` : risk > 0 ? `(${risk} at risk) ` : "";
  return `${mark}Tandem${snapshot.model === null ? "" : ` · ${snapshot.model}`}`;
}

function footOf(snapshot) {
  const length =
    snapshot.max_model_len === null
      ? ""
      : `, up to ${count(snapshot.max_model_len)} tokens per request`;
  return (
    `Coordinator up for ${duration(snapshot.uptime_s)}, ` +
    `incarnation ${snapshot.coordinator_incarnation}${length}. ` +
    "Rates and busy shares are over ten seconds, stage times over five minutes. Press ? for keys."
  );
}

async function loadSeries() {
  seriesAskedAt = performance.now();
  const { windowName } = state;
  try {
    const series = await link.get(`/api/series?window=${windowName}`);
    if (windowName !== state.windowName) return;
    const to = Math.max(state.snapshot.unix_s, series.unix_s[series.unix_s.length - 1] ?? 0);
    // What began a minute ago fills the chart; it grows to the window.
    const first = series.unix_s[0] ?? -Infinity;
    const from = Math.max(to - WINDOWS[windowName].seconds, Math.min(first, to - LEAST_S));
    Object.assign(state, { series, marks: series.decisions, to, from });
    for (const panel of panels) panel.series?.(state);
  } catch (error) {
    if (error.status >= 400) notify(`No history: ${error.message}`, "bad");
  }
}

/** A page's address may name a request, so that it can be sent to somebody. */
function openLinked() {
  const asked = new URLSearchParams(location.hash.slice(1)).get("request");
  if (asked !== null) record.open(asked);
}

// --- the connection -----------------------------------------------------------------------------

function onState(name, status) {
  setAttr(document.body, "data-link", name);
  showLink();
  if (name === "locked") askKey(status);
  else if (name === "live" && byId("key-dialog").open) byId("key-dialog").close();
}

function showLink() {
  const { state: name } = link;
  const shown = isHeld && name === "live" ? "held" : name;
  const words = {
    connecting: "Connecting",
    live: "Live",
    held: "Held",
    reconnecting: "Reconnecting",
    locked: "Key needed",
  };
  setAttr(byId("link"), "data-state", shown);
  setText(byId("link-state"), words[shown]);
  const age = (performance.now() - heardAt) / 1000;
  const data = heardAt === 0 ? "no data yet" : `data ${duration(age)} old`;
  const wait = Math.max(0, Math.ceil((link.retryAt - Date.now()) / 1000));
  const texts = {
    connecting: "",
    locked: data,
    held: data,
    live: state.snapshot === null ? "" : `as of ${clock(state.snapshot.unix_s)}`,
    reconnecting: `${data}, next try ${wait > 0 ? `in ${wait}\u202fs` : "now"}`,
  };
  setText(byId("link-age"), texts[shown]);
  byId("link-age").title = name === "reconnecting" ? link.reason : "";
}

function askKey(status) {
  const hadKey = link.hasKey;
  const isWrong = hadKey && status === 401;
  const text =
    status === 403
      ? link.reason
      : isWrong
        ? "That key is not known here. Check that it was copied whole."
        : "";
  setText(byId("key-error"), text);
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
  byId("key").select();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  link.useKey(byId("key").value.trim());
  setText(byId("key-error"), "");
  link.start();
});
// Without a key there is nothing to see: the dialog stays.
byId("key-dialog").addEventListener("cancel", (event) => event.preventDefault());

// --- what the operator does ---------------------------------------------------------------------

function notify(text, tone) {
  const box = byId("notice");
  const close = el(
    "button",
    { type: "button", on: { click: () => setAttr(box, "hidden", true) } },
    "Close",
  );
  box.replaceChildren(el("span", {}, text), close);
  setAttr(box, "data-tone", tone);
  setAttr(box, "hidden", null);
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => setAttr(box, "hidden", true), NOTICE_MS);
}

function chooseWindow(name) {
  state.windowName = name;
  for (const button of byId("windows").children) {
    setAttr(button, "aria-pressed", String(button.dataset.window === name));
  }
  if (state.snapshot !== null) loadSeries(); // also while the page is held
}

function hold() {
  isHeld = !isHeld;
  setAttr(byId("pause"), "aria-pressed", String(isHeld));
  setAttr(byId("pause").querySelector("use"), "href", isHeld ? "#i-play" : "#i-pause");
  showLink();
  seriesAskedAt = -Infinity;
  plan();
}

function turnTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem(THEME, root.dataset.theme);
}

const theme = localStorage.getItem(THEME);
if (theme !== null) document.documentElement.dataset.theme = theme;
byId("theme").addEventListener("click", turnTheme);
byId("pause").addEventListener("click", hold);
byId("windows").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button !== null) chooseWindow(button.dataset.window);
});
listen({ window: chooseWindow, hold, theme: turnTheme });
document.addEventListener("visibilitychange", plan);
setInterval(showLink, 1000);
link.start();
