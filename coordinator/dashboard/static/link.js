/**
 * The connection to the coordinator: a stream of snapshots over fetch (EventSource cannot send a
 * key), which is taken up again after any loss, and requests beside it.
 */

const FIRST_WAIT_MS = 500;
const MAX_WAIT_MS = 10_000;
const SILENCE_MS = 6_000; // the server sends each second: after this the connection is dead
const KEY = "tandem.key";

/** An answer other than 2xx; `status` 0: none came. */
export class RequestFailed extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** States: "connecting", "live", "reconnecting" and "locked" (it wants a key). */
export class Link {
  constructor({ onSnapshot, onState }) {
    this.onSnapshot = onSnapshot;
    this.onState = onState;
    this.state = "connecting";
    this.retryAt = 0;
    this.reason = "";
    this.numFailures = 0;
    this.abort = null;
    this.timer = null;
    this.watch = null;
  }

  get hasKey() {
    return sessionStorage.getItem(KEY) !== null;
  }

  useKey(key) {
    if (key === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, key);
  }

  /** Connect now, whatever waits. */
  start() {
    clearTimeout(this.timer);
    if (this.abort !== null) this.abort.abort();
    this.run();
  }

  async get(path) {
    return (await this.request("GET", path)).json();
  }

  async post(path, body) {
    return (await this.request("POST", path, body)).json();
  }

  async request(method, path, body, signal = AbortSignal.timeout(10_000)) {
    const headers = {};
    const key = sessionStorage.getItem(KEY);
    if (key !== null) headers.Authorization = `Bearer ${key}`;
    const options = { method, headers, signal, cache: "no-store" };
    if (body !== undefined) {
      headers["Content-Type"] = "application/json";
      options.body = JSON.stringify(body);
    }
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      throw new RequestFailed(0, `the coordinator does not answer (${error.message})`);
    }
    if (!response.ok) throw new RequestFailed(response.status, await explain(response));
    return response;
  }

  async run() {
    const abort = new AbortController();
    this.abort = abort;
    try {
      this.stillAlive(abort);
      const response = await this.request("GET", "/api/stream", undefined, abort.signal);
      await this.read(response.body.getReader(), abort);
      throw new RequestFailed(0, "the coordinator ended the connection");
    } catch (error) {
      if (this.abort === abort) this.lost(error);
    } finally {
      if (this.abort === abort) clearTimeout(this.watch);
      abort.abort();
    }
  }

  async read(reader, abort) {
    const decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      if (this.abort !== abort) return;
      this.stillAlive(abort);
      const blocks = (rest + decoder.decode(value, { stream: true })).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) this.took(block);
    }
  }

  took(block) {
    let event = "message";
    const data = [];
    for (const line of block.split(/\r?\n/)) {
      if (line.startsWith("event:")) event = line.slice(6).trim();
      else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
    }
    if (event !== "snapshot" || data.length === 0) return;
    const snapshot = JSON.parse(data.join("\n"));
    this.numFailures = 0;
    this.become("live");
    this.onSnapshot(snapshot);
  }

  stillAlive(abort) {
    clearTimeout(this.watch);
    this.watch = setTimeout(() => abort.abort(), SILENCE_MS);
  }

  lost(error) {
    if (error.status === 401 || error.status === 403) {
      this.reason = error.message;
      this.become("locked", error.status);
      return;
    }
    // Jitter: after a restart many open pages should not come back in one instant.
    const wait = Math.min(MAX_WAIT_MS, FIRST_WAIT_MS * 2 ** this.numFailures);
    const jittered = wait * (0.75 + Math.random() / 2);
    this.numFailures += 1;
    this.retryAt = Date.now() + jittered;
    this.reason = error.message;
    this.become("reconnecting");
    this.timer = setTimeout(() => this.run(), jittered);
  }

  become(state, status = 0) {
    this.state = state;
    this.onState(state, status);
  }
}

async function explain(response) {
  try {
    const { error } = await response.json();
    return error.message;
  } catch {
    return `the coordinator answered ${response.status} ${response.statusText}`;
  }
}
