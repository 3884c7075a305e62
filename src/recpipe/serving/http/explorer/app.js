// Explorer: the page of the service. Reads its state from the address, asks the service, draws.

import { api, rememberKey } from "./api.js";
import { announce, byId, debounce, el, plural, replace, whenSettled } from "./dom.js";
import { add, drawHistory, fetchTitles, setUpHistory, showEffects } from "./history.js";
import { drawLists, refreshLists, refusalOf } from "./lists.js";
import { drawRules, showRefusal } from "./rules.js";
import { showSimilar } from "./similar.js";
import { fromHash, LENGTHS, state, toHash } from "./state.js";

const FIRST_MODELS = 3; // shown side by side before a choice
const LOADING = 1000; // milliseconds between looks at models that are being loaded
const ATTEMPTS = 120;

let service = null; // answer of GET /models

// All models of the service, the default first.
function allModels() {
  const isOther = ({ name }) => name !== service.default;
  return (service?.models ?? []).toSorted((a, b) => isOther(a) - isOther(b));
}
const chosenModels = () => allModels().filter(({ name }) => state.models.includes(name));
const hasProbability = ({ abilities }) => abilities?.probability !== false;
const withVectors = () => allModels().filter(({ abilities }) => abilities?.similar !== false);

// Item columns of the chosen models, {name, type}, for conditions and categories.
function itemColumns() {
  const all = chosenModels().flatMap(({ item_columns }) => item_columns ?? []);
  const named = all.map((column) => (typeof column === "string" ? { name: column } : column));
  return [...new Map(named.map((column) => [column.name, column])).values()];
}

const context = {
  model: () => chosenModels()[0]?.name ?? service?.default,
  images: () => Boolean(service?.images),
  hasSimilar: () => withVectors().length > 0,
  showSimilar: (id, model) =>
    showSimilar(id, withVectors(), model ?? context.model(), { add: addItem, images: context.images() }),
};

const actions = {
  draw: () => whenSettled(drawAnswers),
  add: addItem,
  exclude: (id) => setItems("exclude", id),
  only: (id) => setItems("candidates", id),
  showSimilar: context.showSimilar,
  showEffects: (explanation) => showEffects(explanation, () => drawHistory(change, context)),
  images: context.images,
};

function drawAnswers() {
  drawLists(chosenModels(), actions);
  showRefusal(refusalOf(chosenModels()), change, itemColumns());
}

function addItem(id, title) {
  add(id, title, change);
}

function setItems(name, id) {
  if (!state.rules[name].includes(id)) state.rules[name] = [...state.rules[name], id];
  byId("rules").open = true;
  change();
}

const refreshSoon = debounce(() => refreshLists(chosenModels(), actions), 60);

// Everything that follows from another state: the address, all parts of the page, the lists.
function change() {
  history.replaceState(null, "", `#${toHash()}`);
  showEffects(null, draw);
  refreshSoon();
}

function draw() {
  drawHistory(change, context);
  drawModels();
  drawRules(change, itemColumns());
  drawLists(chosenModels(), actions);
}

function drawModels() {
  const boxes = allModels().map(({ name, error }) => {
    const box = el("input", {
      type: "checkbox",
      checked: state.models.includes(name),
      "data-focus": `model-${name}`,
    });
    box.addEventListener("change", () => {
      const chosen = new Set(state.models);
      if (!chosen.delete(name)) chosen.add(name);
      state.models = allModels()
        .map((model) => model.name)
        .filter((other) => chosen.has(other));
      change();
    });
    return el("label", { class: "chip", title: typeof error === "string" ? error : null }, box, name);
  });
  replace(byId("models"), boxes);
  byId("k").value = String(state.k);
}

function readAddress() {
  fromHash(location.hash);
  const names = allModels().map(({ name }) => name);
  const byAbility = allModels()
    .slice(1)
    .toSorted((a, b) => hasProbability(b) - hasProbability(a));
  const first = [...names.slice(0, 1), ...byAbility.map(({ name }) => name)].slice(0, FIRST_MODELS);
  const known = names.filter((name) => state.models?.includes(name));
  state.models = state.models === null || (state.models.length && !known.length) ? first : known;
}

async function connect() {
  const isComplete = await api.isReady(); // before the models: what is ready then is in the answer
  try {
    service = await api.models();
  } catch (error) {
    replace(
      byId("lists"),
      el(
        "div",
        { class: "notice error", role: "alert" },
        el("p", {}, error.message),
        el("button", { type: "button", onclick: connect }, "Try again"),
      ),
    );
    byId("service").textContent = "Not connected.";
    if (error.status === 401 || error.status === 403) askForKey();
    return;
  }
  showService();
  readAddress();
  draw();
  if (!isComplete) waitForModels();
  await Promise.all([refreshLists(chosenModels(), actions), fetchTitles(context.model(), draw)]);
  document.documentElement.dataset.ready = "yes";
}

// While the service loads models, it is asked again; those that have come are drawn.
async function waitForModels(attempts = ATTEMPTS) {
  if (!service.refused?.length) byId("service").textContent += ", others are being loaded …";
  await new Promise((done) => setTimeout(done, LOADING));
  const isComplete = await api.isReady();
  const answer = await api.models().catch(() => null);
  if (!answer) return connect();
  const isNew = answer.models.length !== allModels().length;
  service = answer;
  showService();
  if (isNew) {
    readAddress();
    draw();
    refreshLists(chosenModels(), actions);
  }
  if (!isComplete && attempts > 0) waitForModels(attempts - 1);
}

function showService() {
  const datasets = [
    ...new Set(
      allModels()
        .map(({ dataset }) => dataset)
        .filter(Boolean),
    ),
  ];
  byId("dataset").textContent = `Recommendations${datasets.length ? ` · ${datasets.join(", ")}` : ""}`;
  const items = allModels().find(({ items }) => typeof items === "number")?.items;
  const names = (service.refused ?? []).map(({ name }) => name);
  const refused = names.length ? `; refused: ${names.join(", ")}` : "";
  byId("service").textContent =
    `${plural(allModels().length, "model")}${items ? `, ${plural(items, "item")}` : ""}${refused}`;
  byId("user-field").hidden = !service.histories;
}

function askForKey() {
  const dialog = byId("key");
  const input = el("input", { id: "key-input", type: "password", autocomplete: "off" });
  const form = el(
    "form",
    {
      onsubmit: (event) => {
        event.preventDefault();
        rememberKey(input.value.trim());
        dialog.close();
        connect();
      },
    },
    el("h2", { id: "key-title" }, "API key"),
    el("label", { for: "key-input" }, "This service answers with a key only; it stays in this tab."),
    input,
    el("button", {}, "Connect"),
  );
  dialog.replaceChildren(form);
  if (!dialog.open) dialog.showModal();
}

function setUp() {
  byId("k").append(...LENGTHS.map((k) => el("option", { value: k }, String(k))));
  byId("k").addEventListener("change", ({ target }) => {
    state.k = Number(target.value);
    change();
  });
  setUpHistory(change, context);
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("lists").focus();
  });
  byId("share").addEventListener("click", async () => {
    const isCopied = await navigator.clipboard.writeText(location.href).then(
      () => true,
      () => false,
    );
    announce(isCopied ? "Address copied" : "The address could not be copied");
    byId("share").textContent = isCopied ? "Copied" : "Copy it from the address bar";
  });
  window.addEventListener("hashchange", () => {
    if (!service) return;
    readAddress();
    draw();
    refreshLists(chosenModels(), actions);
    fetchTitles(context.model(), draw);
  });
  window.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("input, select, textarea");
    if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    byId("search").focus();
  });
  draw();
  connect();
}

state.models = [];
setUp();
