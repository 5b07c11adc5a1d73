/** The table of nodes, sorted by any column, and what is known of a node when it is opened. */

import { Keyed, byId, el, icon, setAttr, setClass, setIcon, setText } from "./dom.js";
import { byteRate, count, list, ms, number, percent, plural, seconds } from "./format.js";
import { nameOf, setRole, usedShare } from "./memory.js";
import { PAGE_STATES, STATES, UNKNOWN, byName, rankOf } from "./words.js";
import { makeActions, updateActions } from "./actions.js";

/** `isWide`: not shown on a narrow screen, where opening the node shows it. */
const COLUMNS = [
  { label: "Node", key: (n) => n.node_id, isLeft: true },
  { label: "State", key: (n) => rankOf(n), isLeft: true },
  { label: "Busy", key: (n) => n.busy_share, text: (n) => percent(n.busy_share) },
  { label: "KV in use", key: usedShare, text: (n) => percent(usedShare(n)) },
  {
    label: "Prompts waiting",
    key: (n) => n.num_prefill_waiting,
    isWide: true,
    text: (n) =>
      n.num_prefill_waiting === 0
        ? "0"
        : `${count(n.num_prefill_waiting)} (${number(n.num_prefill_tokens_waiting)} tok)`,
  },
  {
    label: "Decoding",
    key: (n) => n.num_decode_running,
    isWide: true,
    text: (n) =>
      n.num_decode_waiting === 0
        ? count(n.num_decode_running)
        : `${count(n.num_decode_running)} (+${count(n.num_decode_waiting)} wait)`,
  },
  {
    label: "Output",
    key: (n) => n.tokens_per_s,
    isWide: true,
    text: (n) => `${number(n.tokens_per_s)}\u202ftok/s`,
  },
  {
    label: "KV sent",
    key: (n) => n.transfer_bytes_per_s,
    isWide: true,
    text: (n) => byteRate(n.transfer_bytes_per_s),
  },
  {
    label: "Failed transfers",
    key: (n) => n.num_transfers_failed,
    isWide: true,
    text: (n) => count(n.num_transfers_failed),
  },
  {
    label: "Heartbeat",
    key: (n) => n.heartbeat_age_s,
    isWide: true,
    text: (n) => `${seconds(n.heartbeat_age_s)} ago`,
  },
];

export class Nodes {
  constructor(orders) {
    this.orders = orders;
    this.open = new Set();
    this.sorted = { column: 1, sign: 1 }; // who needs attention comes first
    const heads = COLUMNS.map((column, index) => {
      const button = el(
        "button",
        { type: "button", class: "sort", on: { click: () => this.sortBy(index) } },
        column.label,
      );
      return el("th", { scope: "col", class: lookOf(column) }, button);
    });
    this.heads = heads;
    const body = el("tbody");
    byId("node-table").append(el("thead", {}, el("tr", {}, ...heads)), body);
    this.rows = new Keyed(
      body,
      (row) => row.key,
      (row) => this.make(row),
      (tr, row) => this.change(tr, row),
    );
    this.gateways = new Keyed(
      byId("gateways"),
      (g) => g.gateway_id,
      () => el("span"),
      (span, g) => {
        setText(
          span,
          `${g.gateway_id}: ${g.state}, ${plural(g.num_live_requests, "live request")}, ` +
            `heard from ${seconds(g.heartbeat_age_s)} ago`,
        );
      },
    );
    this.showSort();
  }

  snapshot({ snapshot }) {
    this.nodes = snapshot.nodes;
    this.gateways.update(snapshot.gateways);
    const states = Object.keys(STATES)
      .map((state) => [snapshot.nodes.filter((n) => n.state === state).length, state])
      .filter(([number]) => number > 0)
      .map(([number, state]) => `${number} ${state}`);
    setText(byId("nodes-note"), list(states));
    const isEmpty = snapshot.nodes.length === 0;
    setAttr(byId("node-table"), "hidden", isEmpty);
    setAttr(byId("nodes-empty"), "hidden", !isEmpty);
    if (isEmpty) explainEmpty(byId("nodes-empty"));
    this.show();
  }

  show() {
    const { column, sign } = this.sorted;
    const { key } = COLUMNS[column];
    const nodes = [...this.nodes].sort(
      (a, b) => sign * compare(key(a), key(b)) || byName(a.node_id, b.node_id),
    );
    this.rows.update(
      nodes.flatMap((node) => {
        const row = { key: node.node_id, node };
        return this.open.has(node.node_id)
          ? [row, { key: `${node.node_id} detail`, node, isDetail: true }]
          : [row];
      }),
    );
  }

  sortBy(index) {
    const { column, sign } = this.sorted;
    this.sorted = { column: index, sign: column === index ? -sign : index < 2 ? 1 : -1 };
    this.showSort();
    this.show();
  }

  showSort() {
    this.heads.forEach((head, index) => {
      const isSorted = index === this.sorted.column;
      setAttr(
        head,
        "aria-sort",
        isSorted ? (this.sorted.sign > 0 ? "ascending" : "descending") : null,
      );
    });
  }

  toggle(nodeId) {
    if (!this.open.delete(nodeId)) this.open.add(nodeId);
    this.show();
  }

  make({ node, isDetail }) {
    if (isDetail) return makeDetail(node, this.orders);
    const name = nameOf(node);
    const button = el(
      "button",
      {
        type: "button",
        class: "link-button",
        "aria-expanded": "false",
        on: { click: () => this.toggle(node.node_id) },
      },
      icon("chevron", "icon chevron"),
      name,
    );
    const state = el("span", { class: "state" }, icon("none"), el("span"));
    const cells = COLUMNS.slice(2).map((column) => el("td", { class: lookOf(column) }));
    const row = el(
      "tr",
      { class: "row" },
      el("th", { scope: "row" }, button),
      el("td", { class: "left" }, state),
      ...cells,
    );
    row.parts = { name, button, state, cells };
    return row;
  }

  change(tr, { node, isDetail }) {
    if (isDetail) {
      updateDetail(tr, node);
      return;
    }
    const { name, button, state, cells } = tr.parts;
    const { tone, icon: shape } = STATES[node.state] || UNKNOWN;
    setRole(name.tag, node.role);
    setAttr(button, "aria-expanded", String(this.open.has(node.node_id)));
    setClass(tr, "is-down", node.state === "down");
    setAttr(state, "class", `state t-${tone}`);
    setIcon(state, shape);
    setText(state.lastElementChild, node.state);
    COLUMNS.slice(2).forEach((column, i) => setText(cells[i], column.text(node)));
  }
}

const lookOf = ({ isLeft, isWide }) =>
  [isLeft ? "left" : "", isWide ? "narrow-hide" : ""].join(" ").trim() || null;

function compare(a, b) {
  if (typeof a === "string") return byName(a, b);
  return (a ?? -1) - (b ?? -1);
}

function explainEmpty(box) {
  if (box.childElementCount > 0) return;
  box.append(
    "No node has joined yet. Start one of each role with this coordinator's address: ",
    el("code", {}, "scripts/launch_prefill --coordinator ADDRESS --model MODEL"),
    " and ",
    el("code", {}, "scripts/launch_decode …"),
    ", or all on one host with ",
    el("code", {}, "tandem up"),
    ".",
  );
}

/** Facts of an opened node: label and text. */
const FACTS = {
  Now: [
    ["Device", (n) => n.device],
    [
      "Weights, prefill / decode",
      (n) => `${number(n.weights.prefill)} / ${number(n.weights.decode)}`,
    ],
    ["Epoch", (n) => String(n.epoch)],
    ["Heartbeat", (n) => `${seconds(n.heartbeat_age_s)} ago`],
    [
      "Prompts waiting",
      (n) => `${count(n.num_prefill_waiting)}, ${number(n.num_prefill_tokens_waiting)} tokens`,
    ],
    [
      "Sequences decoding / waiting",
      (n) => `${count(n.num_decode_running)} / ${count(n.num_decode_waiting)}`,
    ],
    ["Output", (n) => `${number(n.tokens_per_s)} tok/s`],
    [
      "Transfers in flight / done / failed",
      (n) => [n.num_transfers, n.num_transfers_done, n.num_transfers_failed].map(count).join(" / "),
    ],
    ["KV sent", (n) => byteRate(n.transfer_bytes_per_s)],
    ["Preempted since its start", (n) => count(n.num_preempted)],
  ],
  "KV pages": [
    ...PAGE_STATES.map(({ key }) => [key, (n) => (n.pages === null ? "–" : count(n.pages[key]))]),
    ["all", (n) => count(n.num_pages)],
    ["useful share of pages held", (n) => percent(n.useful_share)],
    ["last-page waste", (n) => percent(n.last_page_waste)],
  ],
  "Costs, as measured": [
    ["A step", (n) => cost(n, (c) => seconds(c.step_s))],
    ["each prefill token", (n) => cost(n, (c) => micro(c.prefill_token_s))],
    ["each 1,000 tokens of its context", (n) => cost(n, (c) => micro(c.prefill_context_s * 1000))],
    ["each decode row", (n) => cost(n, (c) => micro(c.decode_row_s))],
    ["each 1,000 tokens of its context", (n) => cost(n, (c) => micro(c.decode_context_s * 1000))],
    ["A transfer", (n) => cost(n, (c) => seconds(c.transfer_s))],
    [
      "and its bytes at",
      (n) =>
        cost(n, (c) =>
          c.transfer_bytes_per_s > 0 ? byteRate(c.transfer_bytes_per_s) : "not known",
        ),
    ],
    [
      "Error of the fit, median",
      (n) => cost(n, (c) => `${percent(c.error)} over ${plural(c.num_steps, "step")}`),
    ],
  ],
};

const cost = (node, read) => (node.costs === null ? "–" : read(node.costs));
const micro = (value) => (value >= 1e-3 ? ms(value * 1000) : `${number(value * 1e6)}\u202fµs`);

function makeDetail(node, orders) {
  const values = [];
  const blocks = Object.entries(FACTS).map(([title, facts]) => {
    const rows = facts.flatMap(([label, read]) => {
      const value = el("dd");
      values.push([value, read]);
      return [el("dt", {}, label), value];
    });
    return el("div", {}, el("h3", {}, title), el("dl", { class: "facts" }, ...rows));
  });
  const actions = makeActions(node, orders);
  blocks[2].append(actions);
  const cell = el(
    "td",
    { colspan: COLUMNS.length, class: "detail-cell" },
    el("div", { class: "detail-grid" }, ...blocks),
  );
  const row = el("tr", { class: "detail" }, cell);
  row.parts = { values, actions };
  return row;
}

function updateDetail(row, node) {
  for (const [value, read] of row.parts.values) setText(value, read(node));
  updateActions(row.parts.actions, node);
}
