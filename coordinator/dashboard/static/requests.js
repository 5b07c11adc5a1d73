/** Requests that live now, and those that ended; choosing one shows its timeline. */

import { Keyed, byId, el, setAttr, setClass, setText } from "./dom.js";
import { count, ms, plural, seconds, shortId } from "./format.js";

const MOST = 50;
const REFRESH_MS = 5000;
const KINDS = [
  { key: "live", label: "Live" },
  { key: "ended", label: "Ended", query: "" },
  { key: "missed", label: "SLA missed", query: "&outcome=missed" },
  { key: "failed", label: "Failed", query: "&outcome=failed" },
];
const EMPTY = {
  live: 'No request is live. Send one with tandem generate "def main():"',
  ended: "No request has ended yet.",
  missed: "No request missed its SLA: nothing to explain.",
  failed: "No request failed.",
};

const route = (from, to) => `${from ?? "–"} → ${to ?? "waits for a node"}`;
const LIVE = [
  ["Request", null, "left"],
  ["Class", (r) => r.sla_class, "left"],
  ["Tenant", (r) => r.tenant, "left narrow-hide"],
  ["Age", (r) => seconds(r.age_s), ""],
  ["Prompt", (r) => `${count(r.num_prompt_tokens)} tok`, "narrow-hide"],
  ["Attempt", (r) => count(r.attempt), "narrow-hide"],
  [
    "Prefill → decode",
    (r) => route(r.prefill_node ?? (r.decode_node && "same"), r.decode_node),
    "left route narrow-hide",
  ],
];
const ENDED = [
  ["Request", null, "left"],
  ["Class", (r) => r.sla_class, "left"],
  ["Outcome", (r) => outcomeOf(r).text, "left"],
  ["TTFT", (r) => ms(r.ttft_ms), ""],
  ["TPOT", (r) => ms(r.tpot_ms), "narrow-hide"],
  ["Prompt", (r) => `${count(r.num_prompt_tokens)} tok`, "narrow-hide"],
  ["Output", (r) => `${count(r.num_output_tokens)} tok`, "narrow-hide"],
];

/** How a request ended, in words and a tone. */
export function outcomeOf(record) {
  if (record.reason === null) return { tone: "none", icon: "none", text: "live" };
  if (record.reason === "failed")
    return { tone: "bad", icon: "bad", text: `failed: ${record.code ?? "unknown"}` };
  if (record.reason === "cancelled") return { tone: "none", icon: "none", text: "cancelled" };
  if (record.sla_attained) return { tone: "ok", icon: "ok", text: "SLA kept" };
  return { tone: "risk", icon: "risk", text: "SLA missed" };
}

export class Requests {
  constructor(link, onChoose) {
    this.link = link;
    this.onChoose = onChoose;
    this.kind = KINDS[0];
    this.chosen = null;
    this.fetchedAt = -Infinity;
    this.buttons = KINDS.map((kind) =>
      el("button", { type: "button", on: { click: () => this.turnTo(kind) } }, kind.label),
    );
    byId("request-kinds").append(...this.buttons);
    this.turnTo(this.kind);
  }

  turnTo(kind) {
    this.kind = kind;
    this.fetchedAt = -Infinity;
    KINDS.forEach((other, i) => setAttr(this.buttons[i], "aria-pressed", String(other === kind)));
    const columns = kind.key === "live" ? LIVE : ENDED;
    const body = el("tbody");
    byId("request-table").replaceChildren(
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          ...columns.map(([label, , look]) => el("th", { scope: "col", class: look }, label)),
        ),
      ),
      body,
    );
    this.rows = new Keyed(
      body,
      (r) => r.request_id,
      (r) => this.make(r, columns),
      (tr, r) => this.change(tr, r, columns),
    );
    if (kind.key === "live") this.show(this.live ?? [], this.numLive ?? 0);
    else this.load();
  }

  snapshot({ snapshot }) {
    this.live = snapshot.live;
    this.numLive = snapshot.num_live;
    if (this.kind.key === "live") this.show(this.live, Math.max(this.numLive, this.live.length));
    else if (performance.now() - this.fetchedAt > REFRESH_MS) this.load();
  }

  async load() {
    const { kind } = this;
    this.fetchedAt = performance.now();
    try {
      const records = await this.link.get(`/api/requests?limit=${MOST}${kind.query}`);
      if (this.kind === kind)
        this.show(
          records.filter((r) => r.reason !== null),
          null,
        );
    } catch (error) {
      if (this.kind === kind) this.say(`Not known: ${error.message}`);
    }
  }

  show(records, numAll) {
    this.rows.update(records.slice(0, MOST));
    const rest = numAll === null ? 0 : numAll - Math.min(MOST, records.length);
    if (records.length === 0) this.say(EMPTY[this.kind.key]);
    else this.say(rest > 0 ? `and ${plural(rest, "more", "more")}` : "");
  }

  say(text) {
    setText(byId("requests-empty"), text);
    setAttr(byId("requests-empty"), "hidden", text === "");
  }

  choose(requestId) {
    this.chosen = requestId;
    for (const [key, row] of this.rows.nodes) setClass(row, "is-chosen", key === requestId);
  }

  make(request, columns) {
    const button = el(
      "button",
      {
        type: "button",
        class: "link-button id",
        title: request.request_id,
        on: { click: () => this.onChoose(request.request_id) },
      },
      shortId(request.request_id),
    );
    const cells = columns.slice(1).map(([, , look]) => el("td", { class: look }));
    const row = el("tr", { class: "row" }, el("th", { scope: "row" }, button), ...cells);
    row.parts = cells;
    return row;
  }

  change(row, request, columns) {
    columns.slice(1).forEach(([, read], i) => setText(row.parts[i], read(request)));
    setClass(row, "is-chosen", request.request_id === this.chosen);
    if (columns === ENDED) setAttr(row.parts[1], "class", `left t-${outcomeOf(request).tone}`);
  }
}
