/** What roles, states, stages and verdicts are called, drawn and coloured. */

export const ROLES = {
  prefill: { letter: "P", tone: "tone-prefill" },
  decode: { letter: "D", tone: "tone-decode" },
  mixed: { letter: "M", tone: "tone-mixed" },
  closed: { letter: "–", tone: "closed" },
};

export const STATES = {
  ok: { tone: "ok", icon: "ok" },
  slow: { tone: "risk", icon: "slow" },
  draining: { tone: "risk", icon: "drain" },
  down: { tone: "bad", icon: "bad" },
};
export const UNKNOWN = { tone: "none", icon: "none" };

const TROUBLE_FIRST = ["down", "slow", "draining", "ok"];
export const rankOf = (node) => TROUBLE_FIRST.indexOf(node.state);
/** decode-2 before decode-10. */
export const byName = new Intl.Collator("en", { numeric: true }).compare;

/** Nodes that need attention, then the others, by name. */
export function inOrder(nodes) {
  return [...nodes].sort((a, b) => rankOf(a) - rankOf(b) || byName(a.node_id, b.node_id));
}

export const VERDICTS = {
  ok: { tone: "ok", icon: "ok", word: "Kept" },
  "at risk": { tone: "risk", icon: "risk", word: "At risk" },
  violated: { tone: "bad", icon: "bad", word: "Violated" },
  "no traffic": { tone: "none", icon: "none", word: "No traffic" },
};

/** What waits is hatched, what works is solid. */
export const STAGES = [
  { key: "queue", label: "queue", tone: "tone-queue", isHatched: true },
  { key: "prefill", label: "prefill", tone: "tone-prefill" },
  { key: "transfer", label: "transfer", tone: "tone-transfer" },
  { key: "decode_admission", label: "decode admission", tone: "tone-admission", isHatched: true },
];

/** In the order of the bars: what is in use first, what is free last. */
export const PAGE_STATES = [
  { key: "active", tone: "tone-active" },
  { key: "ready", tone: "tone-ready" },
  { key: "filling", tone: "tone-filling" },
  { key: "granted", tone: "tone-granted", isHatched: true },
  { key: "draining", tone: "tone-draining", isHatched: true },
  { key: "quarantined", tone: "tone-quarantined", isHatched: true },
  { key: "cached", tone: "tone-cached" },
  { key: "free", tone: "tone-free" },
];

export const WINDOWS = {
  "5m": { seconds: 300, label: "5 min", refreshS: 2 },
  "1h": { seconds: 3600, label: "1 h", refreshS: 10 },
  "3d": { seconds: 259_200, label: "3 d", refreshS: 60 },
};
