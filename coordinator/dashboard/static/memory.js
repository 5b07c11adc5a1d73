/** KV pages of each node by state, how well they are filled, and how busy each device is. */

import { Keyed, byId, el, setAttr, setClass, setText, setWidth } from "./dom.js";
import { count, percent } from "./format.js";
import { TimeChart } from "./timechart.js";
import { PAGE_STATES, ROLES, inOrder } from "./words.js";

export class Memory {
  constructor(live) {
    byId("kv-legend").append(
      ...PAGE_STATES.map(({ key, tone, isHatched }) =>
        el("li", {}, el("span", { class: `swatch ${tone}${isHatched ? " hatched" : ""}` }), key),
      ),
    );
    const head = el(
      "div",
      { class: "bar-row bar-head" },
      el("span"),
      el("span"),
      el(
        "div",
        { class: "bar-figures" },
        el("span", {}, "in use"),
        el("span", {}, "useful"),
        el("span", {}, "last-page waste"),
      ),
    );
    byId("kv-bars").append(head);
    const pages = el("div");
    byId("kv-bars").append(pages);
    this.pages = new Keyed(pages, (n) => n.node_id, makePages, updatePages);
    const kinds = ["prefill", "mixed", "decode"].map((role) =>
      el(
        "li",
        {},
        el("span", { class: `swatch ${ROLES[role].tone}` }),
        `${ROLES[role].letter} ${role}`,
      ),
    );
    byId("busy-legend").append(...kinds);
    const busy = el("div");
    byId("busy-bars").append(
      el(
        "div",
        { class: "bar-row bar-head" },
        el("span"),
        el("span"),
        el("span", { class: "bar-value" }, "busy"),
      ),
      busy,
    );
    this.busy = new Keyed(busy, (n) => n.node_id, makeBusy, updateBusy);
    this.used = new TimeChart(
      byId("chart-kv"),
      {
        title: "Share of KV pages in use, all nodes",
        height: 108,
        max: 1,
        numTicks: 2,
        format: percent,
        rows: [
          {
            key: "kv_used_share",
            label: "KV pages in use, all nodes",
            tone: "tone-active",
            kind: "area",
          },
        ],
      },
      live,
    );
    this.shares = new TimeChart(
      byId("chart-busy"),
      {
        title: "Busy share by role",
        height: 108,
        max: 1,
        numTicks: 2,
        format: percent,
        rows: [
          { key: "busy_prefill", label: "prefill", tone: "tone-prefill" },
          { key: "busy_decode", label: "decode", tone: "tone-decode", look: "dashed" },
        ],
      },
      live,
    );
  }

  snapshot({ snapshot: { nodes } }) {
    const ordered = inOrder(nodes);
    this.pages.update(ordered);
    this.busy.update(ordered);
    setText(byId("kv-note"), sayPages(nodes));
    for (const id of ["kv", "busy"]) setClass(byId(id), "no-nodes", nodes.length === 0);
  }

  series({ series, from, to, marks }) {
    this.used.update(series, from, to, { marks });
    this.shares.update(series, from, to, { marks });
  }
}

/** Pages that somebody holds: cached ones are given up when pages run short. */
export function usedShare({ pages, num_pages: num }) {
  return pages === null || num === 0 ? null : (num - pages.free - pages.cached) / num;
}

function sayPages(nodes) {
  const known = nodes.filter((node) => node.pages !== null && node.state !== "down");
  const total = known.reduce((sum, node) => sum + node.num_pages, 0);
  if (total === 0) return "";
  const used = known.reduce((sum, node) => sum + usedShare(node) * node.num_pages, 0);
  return `${count(used)} of ${count(total)} pages in use`;
}

export function nameOf({ node_id: id, role }) {
  const tag = el("span", {});
  const node = el("span", { class: "bar-name" }, tag, el("span", { title: id }, id));
  node.tag = tag;
  setRole(tag, role);
  return node;
}

export function setRole(tag, role) {
  const { letter, tone } = ROLES[role] || ROLES.closed;
  setAttr(tag, "class", `role-tag ${tone}`);
  setAttr(tag, "title", role);
  setText(tag, letter);
}

function makePages(node) {
  const parts = PAGE_STATES.map(({ tone, isHatched }) =>
    el("i", { class: `${tone}${isHatched ? " hatched" : ""}` }),
  );
  const name = nameOf(node);
  const bar = el("div", { class: "bar", role: "img" }, ...parts);
  const [used, useful, waste] = [el("b"), el("span"), el("span")];
  const row = el(
    "div",
    { class: "bar-row" },
    name,
    bar,
    el("div", { class: "bar-figures" }, used, useful, waste),
  );
  row.parts = { name, bar, parts, used, useful, waste };
  return row;
}

function updatePages(row, node) {
  const { name, bar, parts, used, useful, waste } = row.parts;
  setRole(name.tag, node.role);
  setClass(row, "is-down", node.state === "down");
  const words = [];
  PAGE_STATES.forEach(({ key }, i) => {
    const num = node.pages === null ? 0 : node.pages[key];
    setWidth(parts[i], num / (node.num_pages || 1));
    setAttr(parts[i], "title", `${count(num)} ${key}`);
    if (num > 0) words.push(`${count(num)} ${key}`);
  });
  setAttr(
    bar,
    "aria-label",
    `${node.node_id}: ${words.join(", ") || "pages not known"} of ${count(node.num_pages)} pages`,
  );
  setText(used, percent(usedShare(node)));
  setText(useful, percent(node.useful_share));
  setText(waste, percent(node.last_page_waste));
}

function makeBusy(node) {
  const fill = el("i");
  const name = nameOf(node);
  const value = el("span", { class: "bar-value" });
  const bar = el(
    "div",
    { class: "bar", role: "meter", "aria-valuemin": "0", "aria-valuemax": "100" },
    fill,
  );
  const row = el("div", { class: "bar-row" }, name, bar, value);
  row.parts = { name, bar, fill, value };
  return row;
}

function updateBusy(row, node) {
  const { name, bar, fill, value } = row.parts;
  setRole(name.tag, node.role);
  setClass(row, "is-down", node.state === "down");
  setAttr(fill, "class", (ROLES[node.role] || ROLES.closed).tone);
  setWidth(fill, node.busy_share);
  setText(value, percent(node.busy_share));
  setAttr(
    bar,
    "aria-valuenow",
    node.busy_share === null ? null : Math.round(node.busy_share * 100),
  );
  setAttr(bar, "aria-label", `${node.node_id} busy`);
}
