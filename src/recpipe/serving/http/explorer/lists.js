// Lists of the chosen models side by side, with what each item is and which events mattered for it.

import { api } from "./api.js";
import { byId, decimal, el, percent, picture, plural, replace, titled } from "./dom.js";
import { effectBar, largestEffect } from "./history.js";
import { activeRules, historyFields, present, remember, state, titleOf } from "./state.js";

const EVENTS_SHOWN = 5; // of an explanation
const LONG = 60; // characters of a title that may be cut off in a row
const HOVER = 250; // milliseconds over an item until its explanation is fetched
const SOURCES = {
  cold_users: "No known item in the history: this is the list for users without history.",
  content_slots: "new item",
};

const columns = new Map(); // model name -> {answer, error, isLoading, milliseconds, controller, explanations, open}

function columnOf(name) {
  if (!columns.has(name))
    columns.set(name, { answer: null, error: null, isLoading: false, explanations: null, open: new Set() });
  return columns.get(name);
}

// Asks all chosen models. actions: {draw(), add, exclude, only, showSimilar, showEffects, images()}.
export function refreshLists(models, actions) {
  for (const [name, column] of columns)
    if (!models.some((model) => model.name === name)) column.controller?.abort();
  return Promise.all(models.map((model) => refresh(model, actions)));
}

async function refresh(model, actions) {
  const { name } = model;
  const column = columnOf(name);
  column.controller?.abort();
  column.controller = new AbortController();
  const { signal } = column.controller;
  Object.assign(column, {
    isLoading: true,
    explanations: null,
    explained: undefined,
    explanationError: undefined,
  });
  actions.draw();
  const rules = activeRules();
  const body = { model: name, k: state.k, users: [{ user_id: "explorer", ...historyFields() }] };
  if (Object.keys(rules).length) body.rules = rules;
  if (state.times) body.now = present();
  const started = performance.now();
  try {
    const answer = await api.recommend(body, signal);
    if (signal.aborted) return;
    for (const { item_id, title } of answer.lists[0].items) remember(item_id, title);
    Object.assign(column, { answer, error: null, milliseconds: performance.now() - started });
  } catch (error) {
    if (signal.aborted) return;
    Object.assign(column, { error, answer: null });
  }
  column.isLoading = false;
  actions.draw();
  if (column.open.size) explanation(model, column).then(actions.draw);
}

// The refusal that all shown models share and that is about the rules, or null.
export function refusalOf(models) {
  const messages = new Set(
    models
      .map((model) => columns.get(model.name)?.error)
      .map((error) => error?.status === 422 && error.message),
  );
  const [message] = messages;
  return messages.size === 1 && message && Object.keys(activeRules()).length ? message : null;
}

export function drawLists(models, actions) {
  if (!models.length) {
    replace(byId("lists"), el("p", { class: "none" }, "No model is chosen: tick one above."));
    return;
  }
  const chances = models
    .flatMap(({ name }) => columns.get(name)?.answer?.lists[0].items ?? [])
    .map((item) => item.probability ?? 0);
  const highest = Math.max(1e-12, ...chances);
  const refusal = refusalOf(models);
  replace(
    byId("lists"),
    models.map((model) => drawColumn(model, { highest, refusal }, actions)),
  );
}

function drawColumn(model, { highest, refusal }, actions) {
  const column = columnOf(model.name);
  const list = column.answer?.lists[0];
  const heading = `list-${model.name}`;
  return el(
    "section",
    { class: "list", "aria-labelledby": heading, "aria-busy": String(column.isLoading) },
    el("h3", { id: heading }, model.name),
    el("p", { class: "small muted meta" }, describe(model, column)),
    column.error && failure(column.error, refusal, () => refresh(model, actions)),
    list && notices(list),
    list && items(model, column, list, highest, actions),
    !list &&
      column.isLoading &&
      el(
        "div",
        { class: "skeleton", role: "presentation" },
        Array.from({ length: state.k }, () => el("i")),
      ),
  );
}

// One line: version, what the model was measured at, and the time of the last answer.
function describe(model, column) {
  const metrics = model.metrics ?? model.stands_for?.metrics ?? {};
  const [metric, value] =
    Object.entries(metrics).find(([name]) => /^ndcg@10$/i.test(name)) ?? Object.entries(metrics)[0] ?? [];
  const protocol = model.protocol?.id ?? model.protocol ?? model.stands_for?.protocol;
  const version = String(column.answer?.version ?? model.version ?? "").replace(
    /T(\d\d)\.(\d\d).*/,
    " $1:$2",
  );
  const made = model.made_by && model.made_by !== "train" ? `${model.made_by}, stands for a run with ` : "";
  return [
    version && `version ${version}`,
    metric &&
      typeof value === "number" &&
      `${made}${metric.toUpperCase()} ${value.toFixed(4).replace(/^0/, "")}`,
    protocol && `protocol ${protocol}`,
    column.milliseconds !== undefined && column.answer && `${Math.round(column.milliseconds)} ms`,
  ]
    .filter(Boolean)
    .join(" · ");
}

function failure(error, refusal, retry) {
  if (refusal) return el("p", { class: "notice error" }, "Refused: see the rules above.");
  const button = error.status !== 422 && el("button", { type: "button", onclick: retry }, "Try again");
  return el("div", { class: "notice error", role: "alert" }, el("p", {}, error.message), button);
}

function notices(list) {
  const unknown = list.unknown_items ?? 0;
  return [
    list.source === "cold_users" &&
      el("p", { class: "notice fallback" }, el("strong", {}, "Fallback. "), SOURCES.cold_users),
    unknown > 0 &&
      el(
        "p",
        { class: "notice" },
        `${plural(unknown, "event")} of the history: this model does not know the item${unknown === 1 ? "" : "s"}.`,
      ),
    list.message && el("p", { class: "notice" }, list.message),
    !list.items.length && !list.message && el("p", { class: "none" }, "No item is left under these rules."),
  ];
}

function items(model, column, list, highest, actions) {
  const best = Math.max(1e-12, ...list.items.map((item) => Math.abs(item.score ?? 0)));
  const rows = list.items.map((item) => row(model, column, item, { highest, best }, actions));
  return el("ol", { class: "items" }, rows);
}

function row(model, column, item, scale, actions) {
  const title = titled(item.title, item.item_id);
  const isOpen = column.open.has(item.item_id);
  const id = `details-${model.name}-${item.item_id}`;
  const toggle = () => {
    if (!column.open.delete(item.item_id)) {
      column.open.add(item.item_id);
      explanation(model, column).then(actions.draw);
    }
    actions.draw();
  };
  const element = el(
    "li",
    { "data-item": item.item_id },
    el("span", { class: "rank" }, String(item.rank)),
    picture(item.item_id, actions.images()),
    el(
      "button",
      {
        type: "button",
        class: "title",
        title: "Add to the history",
        "aria-label": `Add to the history: ${title}`,
        "data-focus": `add-${model.name}-${item.rank}`,
        onclick: () => actions.add(item.item_id, item.title),
      },
      el("span", { class: "title" }, title),
    ),
    item.source === "content_slots" && el("span", { class: "badge" }, SOURCES.content_slots),
    el(
      "span",
      { class: "chance" },
      item.probability === null || item.probability === undefined
        ? decimal(item.score)
        : percent(item.probability),
    ),
    el(
      "button",
      {
        type: "button",
        class: "why",
        "aria-expanded": String(isOpen),
        "aria-controls": id,
        "aria-label": `Why: ${title}`,
        "data-focus": `why-${model.name}-${item.item_id}`,
        onclick: toggle,
      },
      "Why",
    ),
    bar(item, scale),
    el("div", { class: "details", id, hidden: !isOpen }, isOpen && details(model, column, item, actions)),
  );
  whenLookedAt(element, item, model, column, actions);
  return element;
}

function bar(item, { highest, best }) {
  const hasChance = item.probability !== null && item.probability !== undefined;
  if (!hasChance && !(item.score > 0)) return null; // log-probabilities of the fallback
  const share = hasChance ? item.probability / highest : item.score / best;
  const fill = el("i", { class: hasChance ? "" : "score" });
  fill.style.width = `${100 * Math.min(share, 1)}%`;
  return el("span", { class: "bar", "aria-hidden": "true" }, fill);
}

// With the mouse over an item, or the focus in it, its explanation stands beside the history, and the item is marked in
// all lists.
function whenLookedAt(element, item, model, column, actions) {
  let timer;
  const look = () => {
    mark(item.item_id, true);
    if (!state.events.length) return;
    timer = setTimeout(async () => {
      const explained = (await explanation(model, column))?.get(item.item_id);
      if (explained && element.isConnected)
        actions.showEffects({ title: titleOf(item.item_id), events: explained });
    }, HOVER);
  };
  const leave = () => {
    clearTimeout(timer);
    mark(item.item_id, false);
    actions.showEffects(null);
  };
  element.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && look());
  element.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && leave());
  element.addEventListener("focusin", (event) => event.target.matches(":focus-visible") && look());
  element.addEventListener("focusout", () => setTimeout(leave)); // when the focus has arrived
}

function mark(id, isMarked) {
  for (const element of document.querySelectorAll("[data-item]"))
    if (element.dataset.item === id) element.classList.toggle("marked", isMarked);
}

// Explanations of a whole list, in one request: Map(item id -> events); null where the service has none.
function explanation(model, column) {
  const list = column.answer?.lists[0];
  if (!list || !state.events.length || list.source === "cold_users" || model.abilities?.explain === false)
    return Promise.resolve(null);
  column.explanations ??= api
    .explain(
      { model: model.name, ...historyFields(), candidates: list.items.map((item) => item.item_id) },
      column.controller?.signal,
    )
    .then((answer) => {
      column.unit = answer.unit;
      return new Map(answer.candidates.map(({ item_id, events }) => [item_id, events]));
    })
    .catch((error) => {
      column.explanationError = error.message;
      return null;
    });
  column.explanations.then((found) => (column.explained = found));
  return column.explanations;
}

function details(model, column, item, actions) {
  const title = titled(item.title, item.item_id);
  const codes = Object.entries(item.codes ?? {}).filter(([, values]) => values);
  const button = (label, onclick) =>
    el("button", { type: "button", "data-focus": `${label}-${model.name}-${item.item_id}`, onclick }, label);
  return [
    el("h4", {}, "Because of"),
    because(column, item),
    el(
      "dl",
      {},
      title.length > LONG && [el("dt", {}, "title"), el("dd", { class: "title" }, title)],
      el("dt", {}, "item"),
      el("dd", {}, el("code", {}, item.item_id)),
      codes.map(([kind, values]) => [
        el("dt", {}, `${kind} id`),
        el("dd", {}, el("code", {}, values.join(" · "))),
      ]),
      item.score !== null &&
        item.score !== undefined && [el("dt", {}, "score"), el("dd", {}, decimal(item.score, 3))],
    ),
    el(
      "div",
      { class: "chips" },
      model.abilities?.similar !== false &&
        button("Nearest items", () => actions.showSimilar(item.item_id, model.name)),
      button("Exclude", () => actions.exclude(item.item_id)),
      button("Only this", () => actions.only(item.item_id)),
    ),
  ];
}

function because(column, item) {
  if (!state.events.length || column.answer?.lists[0].source === "cold_users")
    return el("p", { class: "small muted" }, "Popularity: there is no history that the model knows.");
  if (column.explained === null)
    return el("p", { class: "small muted" }, column.explanationError ?? "This model cannot be explained.");
  if (column.explained === undefined)
    return el("p", { class: "small muted" }, "Leaving out one event after the other …");
  const events = column.explained.get(item.item_id) ?? [];
  const strongest = [...events]
    .sort((a, b) => Math.abs(b.effect ?? 0) - Math.abs(a.effect ?? 0))
    .slice(0, EVENTS_SHOWN);
  const largest = largestEffect(strongest.map((event) => event.effect));
  const isCut = events.length > EVENTS_SHOWN;
  const unit = column.unit === "score" ? "score" : "log-probability";
  return [
    el(
      "ol",
      { class: "because" },
      strongest
        .sort((a, b) => (b.effect ?? 0) - (a.effect ?? 0))
        .map((event) =>
          el(
            "li",
            {},
            el("span", { class: "title" }, titled(event.title, event.item_id)),
            effectBar(event.effect, largest),
          ),
        ),
    ),
    el(
      "p",
      { class: "small muted" },
      `How much the ${unit} falls without the event${isCut ? `; strongest of ${events.length}` : ""}.`,
    ),
  ];
}
