/** Prefill and decode nodes over time, and every decision with its reason. */

import { Keyed, byId, el, setAttr, setClass, setText } from "./dom.js";
import { count, duration, moment, sentence } from "./format.js";
import { TimeChart } from "./timechart.js";

const MODES = {
  off: "Balancer off: roles change by hand only",
  observe: "Balancer observes: it says what it would do, and changes nothing",
  on: "Balancer on",
};

export class Balance {
  constructor(live) {
    this.chosen = null;
    this.decisions = [];
    this.chart = new TimeChart(
      byId("chart-balance"),
      {
        title: "Nodes by role",
        height: 168,
        isStacked: true,
        isStep: true,
        isWhole: true,
        least: 2,
        kind: "area",
        format: count,
        onMark: (mark) => this.choose(mark),
        rows: [
          { key: "num_prefill", label: "prefill", tone: "tone-prefill" },
          { key: "num_mixed", label: "mixed", tone: "tone-mixed", isHatched: true },
          { key: "num_decode", label: "decode", tone: "tone-decode" },
        ],
      },
      live,
    );
    byId("chart-balance").classList.add("solid-areas");
    this.list = new Keyed(
      byId("decisions"),
      (d) => d.number,
      () => this.make(),
      (li, d) => this.change(li, d),
    );
  }

  snapshot({ snapshot }) {
    const { balance } = snapshot;
    const mixed = balance.num_mixed > 0 ? ` and ${count(balance.num_mixed)} for both` : "";
    setText(
      byId("balance-ratio"),
      `${count(balance.num_prefill)} prefill : ${count(balance.num_decode)} decode${mixed}`,
    );
    const wait =
      balance.cooldown_s > 0
        ? `; the next change in ${duration(balance.cooldown_s)} at the earliest`
        : "";
    setText(byId("balance-mode"), (MODES[balance.mode] || balance.mode) + wait);
    const isListed = this.decisions.some((decision) => balance.explanation.endsWith(decision.text));
    setText(byId("balance-why"), isListed ? "" : sentence(balance.explanation));
  }

  series({ series, from, to, marks }) {
    this.decisions = marks;
    this.now = to;
    this.chart.update(series, from, to, { marks: marks.map((d) => ({ ...d, label: d.text })) });
    this.list.update([...marks].reverse());
    setText(
      byId("decisions-count"),
      marks.length === 0 ? "" : `${count(marks.length)} in this window`,
    );
    const box = byId("decisions");
    if (marks.length === 0 && box.childElementCount === 0) {
      this.none = this.none || el("li", { class: "note" }, el("p", {}, "None in this window."));
      box.append(this.none);
    } else if (marks.length > 0 && this.none) {
      this.none.remove();
    }
  }

  make() {
    const time = el("time");
    const text = el("p");
    const item = el("li", { tabindex: "0" }, time, text);
    item.parts = { time, text };
    for (const event of ["pointerenter", "focus"])
      item.addEventListener(event, () => this.choose(item.decision));
    for (const event of ["pointerleave", "blur"])
      item.addEventListener(event, () => this.choose(null));
    return item;
  }

  change(item, decision) {
    item.decision = decision;
    setText(item.parts.time, moment(decision.unix_s, this.now));
    setAttr(item.parts.time, "datetime", new Date(decision.unix_s * 1000).toISOString());
    setText(item.parts.text, decision.text);
  }

  /** The same decision is lit in the chart and in the list. */
  choose(decision) {
    const number = decision === null ? null : decision.number;
    for (const item of byId("decisions").children) {
      const isOn =
        number !== null && item.decision !== undefined && item.decision.number === number;
      setClass(item, "is-on", isOn);
      if (isOn && document.activeElement !== item) reveal(item);
    }
    for (const flag of this.chart.flags.children) {
      setClass(flag, "is-on", number !== null && flag.mark.number === number);
    }
  }
}

/** Scrolls the list, never the page. */
function reveal(item) {
  const box = item.parentElement;
  const top = item.offsetTop - box.offsetTop;
  if (top < box.scrollTop || top + item.offsetHeight > box.scrollTop + box.clientHeight)
    box.scrollTop = top;
}
