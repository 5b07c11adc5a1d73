/** What an operator may do with a node: drain it, give it other roles. Each is asked twice. */

import { byId, el, setAttr, setText } from "./dom.js";
import { number, plural } from "./format.js";

export function makeActions(node, orders) {
  const box = el("form", { class: "node-actions", "aria-label": `Actions on ${node.node_id}` });
  const field = (label, value) => {
    const input = el("input", {
      type: "number",
      min: "0",
      max: "1",
      step: "0.05",
      required: true,
      value: number(value),
    });
    return { input, label: el("label", {}, label, input) };
  };
  const prefill = field("prefill weight", node.weights.prefill);
  const decode = field("decode weight", node.weights.decode);
  const drain = el("button", { type: "button" }, "Drain…");
  drain.addEventListener("click", () => orders.ask(drainOf(box.node)));
  box.addEventListener("submit", (event) => {
    event.preventDefault();
    const weights = { prefill: Number(prefill.input.value), decode: Number(decode.input.value) };
    orders.ask(weightsOf(box.node, weights));
  });
  box.append(
    el("h3", {}, "Actions"),
    el("div", { class: "weights" }, prefill.label, decode.label),
    el("div", { class: "buttons" }, el("button", { type: "submit" }, "Set weights…"), drain),
  );
  box.parts = { drain };
  return box;
}

export function updateActions(box, node) {
  box.node = node;
  const isOver = node.state === "down" || node.state === "draining";
  for (const part of box.elements) setAttr(part, "disabled", isOver);
  setText(box.parts.drain, node.state === "draining" ? "Drains already" : "Drain…");
}

function drainOf(node) {
  const running = node.num_decode_running + node.num_decode_waiting;
  const waiting = node.num_prefill_waiting;
  const work = [];
  if (running > 0)
    work.push(`its ${plural(running, "sequence")} move to other decode nodes with their pages`);
  if (waiting > 0) work.push(`its ${plural(waiting, "prompt")} are finished first`);
  return {
    path: `/api/nodes/${encodeURIComponent(node.node_id)}/drain`,
    body: {},
    title: `Drain ${node.node_id}?`,
    text:
      `Nothing new is placed on it${work.length > 0 ? `; ${work.join(", ")}` : ""}. ` +
      "Then it leaves, and its process ends.",
    force: "even if it is the last node of a role (requests then fail until another comes)",
    yes: `Drain ${node.node_id}`,
  };
}

function weightsOf(node, weights) {
  const now = `${number(node.weights.prefill)} / ${number(node.weights.decode)}`;
  const closed = ["prefill", "decode"].filter((role) => weights[role] === 0);
  const note = closed.length > 0 ? ` It takes no new ${closed.join(" or ")} work.` : "";
  return {
    path: `/api/nodes/${encodeURIComponent(node.node_id)}/weights`,
    body: weights,
    title: `Give ${node.node_id} other roles?`,
    text:
      `Prefill / decode change from ${now} to ` +
      `${number(weights.prefill)} / ${number(weights.decode)}.${note} ` +
      "The balancer leaves the node alone for a while.",
    force: "even if only a slow node is left for a role",
    yes: "Set weights",
  };
}

/** The dialog that asks again, sends the order and shows the coordinator's answer. */
export class Orders {
  constructor(link, notify) {
    this.link = link;
    this.notify = notify;
    this.dialog = byId("confirm-dialog");
    byId("confirm-no").addEventListener("click", () => this.dialog.close());
    byId("confirm-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
  }

  ask(order) {
    this.order = order;
    setText(byId("confirm-title"), order.title);
    setText(byId("confirm-text"), order.text);
    setText(byId("confirm-force-text"), order.force);
    setText(byId("confirm-yes"), order.yes);
    setText(byId("confirm-error"), "");
    byId("confirm-force").checked = false;
    this.dialog.showModal();
    byId("confirm-no").focus();
  }

  async send() {
    const { path, body } = this.order;
    const yes = byId("confirm-yes");
    yes.disabled = true;
    try {
      const answer = await this.link.post(path, { ...body, force: byId("confirm-force").checked });
      if (answer.accepted) {
        this.dialog.close();
        this.notify(answer.message, "ok");
      } else {
        setText(byId("confirm-error"), answer.message);
      }
    } catch (error) {
      const advice =
        error.status === 401 || error.status === 403 ? " Reload the page to give another key." : "";
      setText(byId("confirm-error"), error.message + advice);
    } finally {
      yes.disabled = false;
    }
  }
}
