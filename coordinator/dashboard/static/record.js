/** One request: where its time went, and which decisions were taken about it, with reasons. */

import { byId, el, icon } from "./dom.js";
import { bytes, clock, count, ms, percent, plural, seconds } from "./format.js";
import { outcomeOf } from "./requests.js";

const REFRESH_MS = 2000;

/** Stages of a timeline: from one moment to the next that is known. */
const STAGES = [
  { label: "placement", from: "received_s", to: "placed_s", tone: "tone-queue" },
  { label: "queue", from: "placed_s", to: "prefill_start_s", tone: "tone-queue", isHatched: true },
  { label: "prefill", from: "prefill_start_s", to: "first_token_s", tone: "tone-prefill" },
  { label: "transfer", from: "first_token_s", to: "transfer_end_s", tone: "tone-transfer" },
  {
    label: "decode admission",
    from: "transfer_end_s",
    to: "decode_start_s",
    tone: "tone-admission",
    isHatched: true,
  },
  { label: "decode", from: "decode_start_s", to: "finished_s", tone: "tone-decode" },
];

export class Record {
  constructor(link, onShown) {
    this.link = link;
    this.onShown = onShown;
    this.requestId = null;
    this.isZoomed = false;
    this.fetchedAt = 0;
    this.isOver = true;
    byId("record-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = byId("record-id").value.trim();
      if (text !== "") this.open(text);
    });
    this.explainEmpty();
  }

  /** A prefix of the id of at least 8 digits is enough. */
  async open(requestId) {
    this.requestId = requestId;
    this.isOver = false;
    await this.load();
  }

  async load() {
    const { requestId } = this;
    this.fetchedAt = performance.now();
    try {
      const record = await this.link.get(`/api/requests/${encodeURIComponent(requestId)}`);
      if (this.requestId !== requestId) return;
      this.requestId = record.request_id;
      this.isOver = record.reason !== null;
      this.show(record);
      this.onShown(record.request_id, outcomeOf(record).text);
    } catch (error) {
      if (this.requestId !== requestId) return;
      this.isOver = true;
      byId("record-body").replaceChildren(el("p", { class: "empty" }, error.message));
    }
  }

  /** A live request is read again as it goes on. */
  snapshot() {
    if (!this.isOver && performance.now() - this.fetchedAt > REFRESH_MS) this.load();
  }

  explainEmpty() {
    byId("record-body").replaceChildren(
      el(
        "p",
        { class: "empty" },
        "Choose a request on the left, or give its id: where its time went, and why.",
      ),
    );
  }

  show(record) {
    this.record = record;
    byId("record-body").replaceChildren(...head(record), this.gantt(record), steps(record));
  }

  gantt(record) {
    const moments = { received_s: 0, ...record.timeline };
    const end = lastMoment(moments);
    const bars = STAGES.map((stage) => ({ ...stage, ...span(stage, moments) })).filter(
      (b) => b.start !== null,
    );
    if (bars.length === 0)
      return el("p", { class: "note" }, "Its timeline is known when it has ended.");
    const first = moments.first_token_s;
    const near =
      Math.max(moments.decode_start_s ?? 0, first ?? 0, record.ttft_target_ms / 1000) * 1.06;
    const canZoom = near > 0 && near < end * 0.6;
    const scale = canZoom && this.isZoomed ? near : Math.max(end, 1e-6);
    const box = el("div", { class: "gantt" });
    for (const bar of bars) box.append(...rowOf(bar, scale, record.ttft_target_ms / 1000));
    const zoom = el(
      "button",
      {
        type: "button",
        class: "link-button",
        on: {
          click: () => {
            this.isZoomed = !this.isZoomed;
            this.show(record);
            byId("record-body").querySelector(".g-note button").focus();
          },
        },
      },
      this.isZoomed ? "whole request" : "zoom to the first token",
    );
    const sla =
      record.ttft_target_ms / 1000 <= scale
        ? `dashed: TTFT target ${ms(record.ttft_target_ms)}`
        : `TTFT target ${ms(record.ttft_target_ms)} is beyond`;
    box.append(
      el(
        "p",
        { class: "g-note" },
        el("span", {}, sla),
        canZoom ? zoom : el("span", {}, `ends at ${seconds(end)}`),
      ),
    );
    return box;
  }
}

const KNOWN = [
  "placed_s",
  "prefill_start_s",
  "first_token_s",
  "transfer_end_s",
  "decode_start_s",
  "finished_s",
];

function lastMoment(moments) {
  return Math.max(0, ...KNOWN.map((key) => moments[key] ?? 0));
}

/** A stage that has not ended has no bar. Transfer may end before the first token: it overlaps. */
function span({ from, to }, moments) {
  const end = moments[to];
  if (end === null || end === undefined) return { start: null };
  const order = ["received_s", ...KNOWN];
  const before = order
    .slice(0, order.indexOf(from) + 1)
    .reverse()
    .find((key) => moments[key] !== null && moments[key] !== undefined);
  return {
    start: Math.min(moments[before] ?? 0, end),
    length: Math.max(0, end - (moments[before] ?? 0)),
  };
}

function rowOf({ label, tone, isHatched, start, length }, scale, target) {
  const bar = el("span", { class: `g-bar ${tone}${isHatched ? " hatched" : ""}` });
  bar.style.left = `${Math.min(99.5, (start / scale) * 100)}%`;
  bar.style.width = `${Math.max(0, Math.min(length, scale - start) / scale) * 100}%`;
  const track = el(
    "div",
    {
      class: "g-track",
      role: "img",
      "aria-label": `${label}: ${seconds(length)}, from ${seconds(start)}`,
    },
    bar,
  );
  if (target <= scale) {
    const line = el("span", { class: "g-sla" });
    line.style.left = `${(target / scale) * 100}%`;
    track.append(line);
  }
  return [
    el("span", { class: "g-name" }, label),
    track,
    el("span", { class: "g-value" }, seconds(length)),
  ];
}

function cachedShare({ num_cached_tokens: cached, num_prompt_tokens: all }) {
  return cached / (all || 1);
}

function head(record) {
  const { tone, icon: shape, text } = outcomeOf(record);
  const line = record.timeline;
  const facts = [
    ["class", record.sla_class],
    ["tenant", record.tenant],
    ["gateway", record.gateway_id],
    ["received", clock(record.received_unix_s)],
    ["TTFT", `${ms(record.ttft_ms)} of ${ms(record.ttft_target_ms)}`],
    ["TPOT", `${ms(record.tpot_ms)} of ${ms(record.tpot_target_ms)}`],
    ["longest gap", ms(record.max_itl_ms)],
    [
      "prompt",
      `${count(record.num_prompt_tokens)} tok, ${percent(cachedShare(record))} cached`,
    ],
    ["output", `${count(record.num_output_tokens)} tok`],
  ];
  if (record.priority !== 0) facts.push(["priority", String(record.priority)]);
  if (line !== null) {
    facts.push([
      "route",
      `${line.prefill_node ?? line.decode_node ?? "–"} → ${line.decode_node ?? "–"}`,
    ]);
    facts.push(["KV moved", bytes(line.transfer_bytes)]);
    if (line.num_attempts > 1) facts.push(["attempts", count(line.num_attempts)]);
  }
  const verdict = el(
    "p",
    { class: `record-verdict t-${tone}` },
    icon(shape),
    text,
    el("span", { class: "mono note" }, record.request_id),
  );
  const list = el(
    "p",
    { class: "record-facts" },
    ...facts.map(([name, value]) => el("span", {}, `${name} `, el("b", {}, value))),
  );
  const message = record.message === null ? [] : [el("p", { class: "say" }, record.message)];
  return [verdict, ...message, list];
}

function steps(record) {
  if (record.steps.length === 0) return el("p", { class: "note" }, "No decision about it is kept.");
  const items = record.steps.map((step) =>
    el("li", {}, el("time", {}, `+${seconds(step.after_s)}`), el("p", {}, step.text)),
  );
  return el(
    "div",
    { class: "record-steps" },
    el("h3", {}, plural(record.steps.length, "decision")),
    el("ol", {}, ...items),
  );
}
