/** What passes through: KV between nodes, and requests against those that kept their SLA. */

import { byId, setText } from "./dom.js";
import { byteRate, count, list, number, percent, plural, rate } from "./format.js";
import { smooth } from "./scales.js";
import { TimeChart } from "./timechart.js";

const RATES_S = 10;

export class Flow {
  constructor(live) {
    this.transfers = new TimeChart(
      byId("chart-transfers"),
      {
        title: "KV transfer rate, all nodes",
        height: 176,
        format: byteRate,
        rows: [
          {
            key: "transfer_bytes_per_s",
            label: "KV sent, all nodes",
            tone: "tone-transfer",
            kind: "area",
          },
        ],
      },
      live,
    );
    this.requests = new TimeChart(
      byId("chart-flow"),
      {
        title: "Requests that ended and those that kept their SLA",
        height: 132,
        format: (v) => rate(v),
        least: 1,
        rows: [
          { key: "goodput_per_s", label: "goodput (SLA kept)", tone: "tone-good", kind: "area" },
          { key: "requests_per_s", label: "throughput", tone: "tone-text", look: "thin" },
        ],
      },
      live,
    );
    this.lost = new TimeChart(
      byId("chart-shed"),
      {
        title: "Requests shed and failed",
        height: 78,
        numTicks: 2,
        format: (v) => rate(v),
        kind: "bars",
        least: 1,
        zero: "Nothing shed, nothing failed in this window",
        rows: [
          { key: "shed_per_s", label: "shed", tone: "tone-warn" },
          { key: "failed_per_s", label: "failed", tone: "tone-bad" },
        ],
      },
      live,
    );
  }

  snapshot({ snapshot: { nodes, rates } }) {
    const sum = (key) => nodes.reduce((total, node) => total + node[key], 0);
    const done = sum("num_transfers_done");
    const failed = sum("num_transfers_failed");
    setText(byId("transfers-note"), `${plural(sum("num_transfers"), "transfer")} in flight`);
    setText(byId("transfers-say"), sayTransfers(nodes, done, failed, sum("transfer_bytes_per_s")));
    const share =
      rates.requests > 0
        ? `${percent(Math.min(1, rates.goodput / rates.requests))} of requests are goodput, `
        : "";
    setText(
      byId("flow-note"),
      `${share}${number(rates.output_tokens)} tok/s out, ${number(rates.input_tokens)} tok/s in`,
    );
  }

  series({ series, from, to, marks }) {
    this.transfers.update(series, from, to, { marks });
    this.requests.update(calmed(series), from, to, { marks });
    this.lost.update(series, from, to, { marks, empty: "Nothing known of this window yet" });
  }
}

/** Samples of one second count few requests: as the figures above, over ten. */
function calmed(series) {
  if (series.step_s >= RATES_S) return series;
  const values = { ...series.values };
  for (const name of ["goodput_per_s", "requests_per_s"]) {
    values[name] = smooth(series.unix_s, values[name], RATES_S);
  }
  return { ...series, values };
}

function sayTransfers(nodes, done, failed, bytesPerS) {
  if (done + failed === 0) return "No KV was handed over yet.";
  const head = `${byteRate(bytesPerS)} now. ${count(done)} transfers done`;
  if (failed === 0) return `${head}, none failed.`;
  const where = nodes
    .filter((node) => node.num_transfers_failed > 0)
    .map((node) => `${count(node.num_transfers_failed)} at ${node.node_id}`);
  return `${head}, ${count(failed)} failed: ${list(where.slice(0, 6))}.`;
}
