// State of the page, which its address holds after the #, so that it can be shared.

export const LENGTHS = [5, 10, 20, 50];
const MAX_EVENTS = 500; // of a history in an address: its last ones
const MAX_ID = 1000; // characters

export const noRules = () => ({
  seen: "protocol", // or exclude, allow, or a number of days
  where: "",
  max_per_category: null,
  category: null,
  new_items: 0, // share
  diversity: 0,
  candidates: [],
  exclude: [],
});

export const state = {
  events: [], // {id, time}: oldest first; time in seconds, or null
  times: false, // whether events have times
  now: null, // seconds that "days ago" counts from: the last event of a user of the log, or null for the present
  models: null, // names, null for the service's choice
  k: 10,
  rules: noRules(),
};

const titles = new Map();
export const remember = (id, title) => title && titles.set(id, title);
export const titleOf = (id) => titles.get(id) ?? id;
export const isUntitled = (id) => !titles.has(id);

export const present = () => state.now ?? Math.floor(Date.now() / 1000);

export function activeRules() {
  const { seen, where, max_per_category, category, new_items, diversity, candidates, exclude } = state.rules;
  const rules = {};
  if (seen !== "protocol") rules.seen = seen;
  if (where.trim()) rules.where = where.trim();
  if (max_per_category && category) Object.assign(rules, { max_per_category, category });
  if (new_items > 0) rules.new_items = { share: new_items };
  if (diversity > 0) rules.diversity = diversity;
  if (candidates.length) rules.candidates = candidates;
  if (exclude.length) rules.exclude = exclude;
  return rules;
}

export function countRules() {
  return Object.keys(activeRules()).filter((name) => name !== "category").length;
}

// Body of a request about the history; undefined times are left out.
export function historyFields() {
  const timestamps =
    state.times && state.events.length ? state.events.map((event) => event.time ?? present()) : null;
  return { items: state.events.map((event) => event.id), timestamps };
}

export function addEvent(id, title) {
  remember(id, title);
  state.events.push({ id, time: state.times ? Math.max(present(), state.events.at(-1)?.time ?? 0) : null });
}

// Switches times on or off; events without a time get the present.
export function useTimes(on) {
  state.times = on;
  if (on) for (const event of state.events) event.time ??= present();
}

export function toHash() {
  const hash = new URLSearchParams();
  for (const event of state.events.slice(-MAX_EVENTS)) {
    hash.append("h", event.id);
    if (state.times) hash.append("t", String(event.time ?? present()));
  }
  if (state.now !== null) hash.set("now", String(state.now));
  for (const name of state.models ?? []) hash.append("m", name);
  if (state.k !== 10) hash.set("k", String(state.k));
  const { candidates, exclude, new_items, ...others } = activeRules();
  for (const [name, value] of Object.entries(others)) hash.set(name, String(value));
  if (new_items) hash.set("new_items", String(new_items.share));
  for (const id of candidates ?? []) hash.append("only", id);
  for (const id of exclude ?? []) hash.append("not", id);
  return hash.toString();
}

const numberIn = (text, low, high, otherwise) => {
  const value = Number(text);
  return text === null || text === "" || !Number.isFinite(value) || value < low || value > high
    ? otherwise
    : value;
};

// Reads an address, which may come from anybody: values that are not allowed are left at their defaults.
export function fromHash(text) {
  const hash = new URLSearchParams(text.replace(/^#/, ""));
  const ids = (name) => hash.getAll(name).filter((id) => id && id.length <= MAX_ID);
  const events = ids("h").slice(-MAX_EVENTS);
  const times = hash
    .getAll("t")
    .map((time) => numberIn(time, -(2 ** 40), 2 ** 40, null))
    .slice(-MAX_EVENTS);
  const timed = events.length > 0 && times.length === events.length && !times.includes(null);
  state.events = events.map((id, place) => ({ id, time: timed ? Math.round(times[place]) : null }));
  state.times = timed;
  state.now = numberIn(hash.get("now"), 0, 2 ** 40, null);
  state.models = hash.has("m") ? ids("m") : null;
  state.k = LENGTHS.includes(Number(hash.get("k"))) ? Number(hash.get("k")) : 10;
  const seen = hash.get("seen");
  const days = numberIn(seen, 0, 36500, null);
  state.rules = {
    seen: ["exclude", "allow"].includes(seen) ? seen : (days ?? "protocol"),
    where: (hash.get("where") ?? "").slice(0, 2000),
    max_per_category: numberIn(hash.get("max_per_category"), 1, 1000, null),
    category: hash.get("category"),
    new_items: numberIn(hash.get("new_items"), 0, 1, 0),
    diversity: numberIn(hash.get("diversity"), 0, 1, 0),
    candidates: ids("only"),
    exclude: ids("not"),
  };
}
