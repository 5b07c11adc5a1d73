/** Shortcuts: single keys, never while somebody types or a dialog is open. */

import { byId, el } from "./dom.js";

const SECTIONS = [
  "verdict",
  "balance",
  "ttft",
  "itl",
  "kv",
  "busy",
  "transfers",
  "flow",
  "nodes",
  "requests",
  "record",
  "events",
];
const HELP = [
  [["1", "2", "3"], "window of 5 minutes, 1 hour, 3 days"],
  [["j", "k"], "next and previous panel"],
  [["n"], "nodes"],
  [["r"], "look up a request by its id"],
  [["/"], "filter the events"],
  [["p"], "hold the page still, and go on"],
  [["t"], "light or dark"],
  [["←", "→"], "in a chart: back and forth in time, in all charts at once"],
  [["Esc"], "close, or let go of the moment"],
  [["?"], "this list"],
];

export function listen(actions) {
  byId("help-keys").append(
    ...HELP.flatMap(([keys, text]) => [
      el("dt", {}, ...keys.map((key) => el("kbd", {}, key))),
      el("dd", {}, text),
    ]),
  );
  const help = () => byId("help-dialog").showModal();
  byId("help").addEventListener("click", help);
  const keys = {
    1: () => actions.window("5m"),
    2: () => actions.window("1h"),
    3: () => actions.window("3d"),
    j: () => step(1),
    k: () => step(-1),
    n: () => show(byId("nodes")),
    r: () => byId("record-id").focus(),
    "/": () => byId("event-filter").focus(),
    p: actions.hold,
    t: actions.theme,
    "?": help,
  };
  document.addEventListener("keydown", (event) => {
    const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "Escape" && isTyping) event.target.blur();
    const isTaken = isTyping || event.ctrlKey || event.metaKey || event.altKey;
    if (isTaken || document.querySelector("dialog[open]") || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
}

/** The panel after or before the one at the top of the window. */
function step(sign) {
  const bar = 70;
  const tops = SECTIONS.map((id) => byId(id).getBoundingClientRect().top - bar);
  const focused = SECTIONS.indexOf(document.activeElement.id);
  const at = focused >= 0 ? focused : tops.filter((top) => top <= 4).length - 1;
  show(byId(SECTIONS[Math.max(0, Math.min(SECTIONS.length - 1, at + sign))]));
}

function show(section) {
  section.tabIndex = -1;
  section.focus({ preventScroll: true });
  section.scrollIntoView({ block: "start" });
}
