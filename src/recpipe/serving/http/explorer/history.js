// The history: search fields, the list of events, and the effect of each event on a recommended item.

import { api } from "./api.js";
import { combobox } from "./combobox.js";
import { announce, byId, el, picture, plural, replace, signed, titled, whenSettled } from "./dom.js";
import { addEvent, isUntitled, present, remember, state, titleOf, useTimes } from "./state.js";

const DAY = 86400;
const SHOWN = 12; // latest events, until all are asked for
const TITLES_AT_ONCE = 50;
const SMALLEST = 0.05; // effect whose bar is full where no event has a larger one

let isExpanded = false;
let effects = null; // {title, of: Map(position -> effect)} of the item whose explanation is shown

// change(): the history is another one. context: {model(): name for titles, images(), showSimilar(id)}.
export function setUpHistory(change, context) {
  combobox(byId("search"), byId("search-list"), {
    noun: "item",
    stayOpen: true,
    find: (text, signal) => findItems(text, context.model(), signal),
    show: ({ item_id, title, train_events }) => itemOption(item_id, title, train_events, context.images()),
    choose: ({ item_id, title }) => add(item_id, title, change),
  });
  combobox(byId("user"), byId("user-list"), {
    noun: "user",
    find: async (text, signal) => (await api.users({ q: text, limit: 20 }, signal)).users,
    show: ({ user_id }) => el("span", { class: "title" }, user_id),
    choose: ({ user_id }) => loadUser(user_id, change),
  });
  byId("clear").addEventListener("click", () => {
    [state.events, state.now, isExpanded] = [[], null, false];
    change();
    byId("search").focus();
  });
  byId("times").addEventListener("change", (event) => {
    useTimes(event.target.checked);
    change();
  });
}

export function add(id, title, change) {
  addEvent(id, title);
  announce(`${titled(title, id)} added, ${plural(state.events.length, "event")}`);
  change();
}

// Items by title, and the item with this very id, if there is one.
async function findItems(text, model, signal) {
  const byTitle = api.items({ q: text, model, limit: 30 }, signal);
  const byItsId = text ? api.items({ ids: text, model }, signal).catch(() => ({ items: [] })) : { items: [] };
  const [exact, others] = [await byItsId, await byTitle];
  const first = exact.items.filter((item) => item.item_id === text);
  return [...first, ...others.items.filter((item) => item.item_id !== first[0]?.item_id)];
}

function itemOption(id, title, events, images) {
  const times = state.events.filter((event) => event.id === id).length;
  return [
    picture(id, images),
    el("span", { class: "title" }, titled(title, id)),
    el("span", { class: "aside" }, times ? `in the history${times > 1 ? ` ${times} times` : ""}` : ""),
    el("span", { class: "aside" }, events === 0 ? `${id} · new` : id),
  ];
}

async function loadUser(id, change) {
  try {
    const user = await api.user(id);
    const times = user.timestamps ?? null;
    state.events = user.items.map((item, place) => ({ id: item, time: times ? times[place] : null }));
    user.items.forEach((item, place) => remember(item, user.titles?.[place]));
    [state.times, state.now, isExpanded] = [times !== null, times ? Math.max(...times) : null, false];
    announce(`History of user ${id}: ${plural(user.items.length, "event")}`);
    change();
  } catch (error) {
    showError(error.message);
  }
}

function showError(message) {
  byId("events").prepend(el("p", { class: "notice error", role: "alert" }, message));
}

// Fetches the titles of items that came from an address.
export async function fetchTitles(model, draw) {
  const ids = [
    ...new Set([...state.events.map((event) => event.id), ...state.rules.candidates, ...state.rules.exclude]),
  ];
  const missing = ids.filter(isUntitled);
  for (let start = 0; start < missing.length; start += TITLES_AT_ONCE) {
    const answer = await api
      .items({ ids: missing.slice(start, start + TITLES_AT_ONCE), model })
      .catch(() => null);
    for (const { item_id, title } of answer?.items ?? []) remember(item_id, title);
  }
  if (missing.length) draw();
}

// Shows beside each event how much it mattered; null removes it. explanation: {title, events: [{position, effect}]}.
export function showEffects(explanation, draw) {
  effects = explanation && {
    title: explanation.title,
    of: new Map(explanation.events.map(({ position, effect }) => [position, effect])),
  };
  draw();
}

export function drawHistory(change, context) {
  const { events } = state;
  byId("clear").hidden = !events.length;
  byId("times-field").hidden = !events.length;
  byId("times").checked = state.times;
  byId("effects-title").hidden = !effects || !events.length;
  if (effects)
    byId("effects-title").replaceChildren(
      "Because of: effect on ",
      el("span", { class: "title" }, effects.title),
    );
  if (!events.length) {
    const text =
      "No events yet: the lists are those of a new user. Search for an item above, or click one in a list.";
    replace(byId("events"), el("p", { class: "none" }, text));
    return;
  }
  const count = isExpanded ? events.length : Math.min(SHOWN, events.length);
  const largest = largestEffect([...(effects?.of.values() ?? [])]);
  const rows = Array.from({ length: count }, (_, n) => row(events.length - 1 - n, largest, change, context));
  const more = events.length > SHOWN && [
    el(
      "button",
      {
        type: "button",
        class: "plain",
        "data-focus": "more",
        onclick: () => ((isExpanded = !isExpanded), drawHistory(change, context)),
      },
      isExpanded ? "Show the latest only" : `Show all ${events.length.toLocaleString("en")} events`,
    ),
  ];
  const list = el("ol", { class: "events", reversed: true, "aria-label": "Events, latest first" }, rows);
  replace(byId("events"), list, more);
}

function row(place, largest, change, context) {
  const event = state.events[place];
  const title = titleOf(event.id);
  const move = (step) => {
    const other = place + step;
    if (other < 0 || other >= state.events.length) return;
    const { events } = state;
    [events[place], events[other]] = [events[other], events[place]];
    if (state.times) [events[place].time, events[other].time] = [events[other].time, events[place].time];
    announce(`${title} is now ${state.events.length - other} of ${state.events.length}`);
    change();
    document.querySelector(`[data-focus="${step > 0 ? "later" : "earlier"}-${other}"]`)?.focus();
  };
  const remove = () => {
    state.events.splice(place, 1);
    announce(`${title} removed`);
    change();
    const next = Math.min(place, state.events.length - 1);
    (document.querySelector(`[data-focus="remove-${next}"]`) ?? byId("search")).focus();
  };
  const button = (key, label, sign, onclick, disabled = false) =>
    el(
      "button",
      {
        type: "button",
        class: "icon",
        "aria-label": `${label}: ${title}`,
        title: label,
        "data-focus": `${key}-${place}`,
        onclick,
        disabled,
      },
      sign,
    );
  return el(
    "li",
    { value: place + 1 },
    picture(event.id, context.images()),
    el(
      "div",
      { class: "text" },
      el("span", { class: "title" }, title),
      el("span", { class: "aside" }, titleOf(event.id) === event.id ? "" : event.id),
      state.times && days(event, place, change),
    ),
    el(
      "div",
      { class: "buttons" },
      button("later", "Move later", "↑", () => move(1), place === state.events.length - 1),
      button("earlier", "Move earlier", "↓", () => move(-1), place === 0),
      context.hasSimilar() && button("similar", "Nearest items", "≈", () => context.showSimilar(event.id)),
      button("remove", "Remove", "×", remove),
    ),
    effects && effectBar(effects.of.get(place), largest),
  );
}

export const largestEffect = (values) => Math.max(SMALLEST, ...values.map((effect) => Math.abs(effect ?? 0)));

// The bar of an effect; an event further back than the explanation reaches has none.
export function effectBar(effect, largest) {
  if (effect === undefined) return el("span", { class: "effect none" });
  if (effect === null)
    return el(
      "span",
      { class: "effect", title: "The only event: there is nothing to compare with" },
      el("b", {}, "only event"),
    );
  const bar = el("i", { class: effect < 0 ? "against" : "" });
  bar.style.width = `${(100 * Math.abs(effect)) / largest}%`;
  return el("span", { class: "effect" }, el("span", { class: "track" }, bar), el("b", {}, signed(effect)));
}

function days(event, place, change) {
  const value = Math.round(((present() - (event.time ?? present())) / DAY) * 10) / 10;
  const input = el("input", {
    type: "number",
    min: 0,
    max: 36500,
    step: "any",
    value: String(value),
    "data-focus": `days-${place}`,
    "aria-label": `Days ago: ${titleOf(event.id)}`,
    onchange: ({ target }) => {
      event.time = present() - Math.round(Math.min(Math.max(Number(target.value) || 0, 0), 36500) * DAY);
      state.events.sort((a, b) => a.time - b.time); // stable: the order of events at one time remains
      whenSettled(change);
    },
  });
  return el("label", { class: "days" }, input, " days ago");
}
