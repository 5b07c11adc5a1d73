/** The log of what happened, filtered by kind and words. */

import { Keyed, byId, el, setAttr, setText } from "./dom.js";
import { count, moment } from "./format.js";

const KINDS = ["decision", "member", "order", "request", "error"];
const MOST_KEPT = 2000;
const MOST_SHOWN = 200;

export class Events {
  constructor() {
    this.events = [];
    this.known = new Set();
    this.off = new Set();
    this.words = "";
    this.isChanged = false;
    this.buttons = KINDS.map((kind) => {
      const button = el("button", { type: "button", "aria-pressed": "true" }, kind);
      button.addEventListener("click", () => {
        if (!this.off.delete(kind)) this.off.add(kind);
        setAttr(button, "aria-pressed", String(!this.off.has(kind)));
        this.show();
      });
      return button;
    });
    byId("event-kinds").append(...this.buttons);
    byId("event-filter").addEventListener("input", (event) => {
      this.words = event.target.value.trim().toLowerCase();
      this.show();
    });
    this.list = new Keyed(byId("event-log"), keyOf, makeLine, (line, event) => {
      setText(line.parts.time, moment(event.unix_s, this.now));
    });
  }

  /** Events come once on each connection, but after another one was lost, come again. */
  take(events, now) {
    this.now = now;
    for (const event of events) {
      const key = keyOf(event);
      if (this.known.has(key)) continue;
      this.known.add(key);
      this.events.push(event);
      this.isChanged = true;
    }
    if (this.events.length > MOST_KEPT * 1.2) {
      this.events = this.events.slice(-MOST_KEPT);
      this.known = new Set(this.events.map(keyOf));
    }
  }

  snapshot() {
    if (this.isChanged) this.show();
  }

  show() {
    this.isChanged = false;
    const fits = this.events.filter(({ kind, text }) => {
      return !this.off.has(kind) && (this.words === "" || text.toLowerCase().includes(this.words));
    });
    this.list.update(fits.slice(-MOST_SHOWN).reverse());
    const shown = Math.min(MOST_SHOWN, fits.length);
    const hidden = this.events.length - shown;
    setText(
      byId("events-note"),
      this.events.length === 0
        ? "Nothing has happened yet"
        : `${count(shown)} shown${hidden > 0 ? `, ${count(hidden)} not` : ""}`,
    );
  }
}

/** Numbers begin anew with each coordinator: time and text tell events apart. */
const keyOf = ({ unix_s, text }) => `${unix_s.toFixed(3)} ${text}`;

function makeLine({ kind, text, unix_s }) {
  const time = el("time", { datetime: new Date(unix_s * 1000).toISOString() });
  const line = el(
    "li",
    {},
    time,
    el("span", { class: `kind kind-${kind}` }, kind),
    el("p", {}, text),
  );
  line.parts = { time };
  return line;
}
