// Rules of a list as switches: seen items, a condition on item columns, categories, diversity, new items, single items.

import { byId, el, percent, replace, whenSettled } from "./dom.js";
import { countRules, noRules, state, titleOf } from "./state.js";

const SEEN = [
  ["protocol", "as evaluated"],
  ["exclude", "leave out"],
  ["allow", "allow"],
  ["days", "allow again after some days"],
];

const UNLIKE_CATEGORIES = ["item_id", "title", "text", "train_events"];

let refusal = null; // message of the service about the rules

// The message stands where the mistake was made: below the condition, or below all rules.
export function showRefusal(message, change, columns) {
  if (message === refusal) return;
  refusal = message;
  if (message) byId("rules").open = true;
  drawRules(change, columns);
}

export function drawRules(change, columns) {
  const { rules } = state;
  const set = (name, value) => {
    rules[name] = value;
    whenSettled(change);
  };
  const count = countRules();
  byId("rules-count").hidden = count === 0;
  byId("rules-count").textContent = `${count} active`;
  const isAboutWhere =
    refusal !== null &&
    Boolean(rules.where.trim()) &&
    /condition|where|column|filter|position/i.test(refusal);
  replace(
    byId("rules-fields"),
    el(
      "div",
      { class: "grid" },
      seenField(rules, set),
      categoryField(rules, set, columns),
      slider("diversity", "Diversity", rules.diversity, (value) => set("diversity", value), [
        "off",
        decimalShare,
      ]),
      slider("new", "Share of new items", rules.new_items, (value) => set("new_items", value), [
        "off",
        percent,
      ]),
    ),
    whereField(rules, set, columns, isAboutWhere ? refusal : null),
    itemList("Only these items", "candidates", rules, set),
    itemList("Excluded items", "exclude", rules, set),
    refusal && !isAboutWhere && el("p", { class: "notice error", role: "alert" }, refusal),
    count > 0 &&
      el(
        "button",
        {
          type: "button",
          class: "plain",
          "data-focus": "reset",
          onclick: () => ((state.rules = noRules()), change()),
        },
        "Reset all rules",
      ),
  );
}

const decimalShare = (value) => value.toFixed(2);

function seenField(rules, set) {
  const isDays = typeof rules.seen === "number";
  const current = isDays ? "days" : rules.seen;
  const select = el(
    "select",
    {
      id: "seen",
      "data-focus": "seen",
      onchange: ({ target }) => set("seen", target.value === "days" ? 30 : target.value),
    },
    SEEN.map(([value, label]) => el("option", { value, selected: value === current }, label)),
  );
  const days =
    isDays &&
    el(
      "label",
      { class: "small" },
      el("input", {
        type: "number",
        min: 0,
        max: 36500,
        value: String(rules.seen),
        "data-focus": "seen-days",
        onchange: ({ target }) => set("seen", Math.min(Math.max(Number(target.value) || 0, 0), 36500)),
      }),
      " days after the event",
    );
  const needsTimes =
    isDays &&
    !state.times &&
    el("span", { class: "small muted" }, "Give the events times, below the history.");
  return el(
    "div",
    { class: "field" },
    el("label", { for: "seen" }, "Items of the history"),
    select,
    days,
    needsTimes,
  );
}

function categoryField(rules, set, allColumns) {
  const columns = allColumns.filter(({ name }) => !UNLIKE_CATEGORIES.includes(name));
  if (!columns.length) return null;
  const number = el("input", {
    id: "max",
    type: "number",
    min: 1,
    max: 1000,
    placeholder: "any",
    "data-focus": "max",
    value: rules.max_per_category === null ? "" : String(rules.max_per_category),
    onchange: ({ target }) => {
      rules.category ??= columns[0].name;
      set("max_per_category", Number(target.value) >= 1 ? Math.round(Number(target.value)) : null);
    },
  });
  const select = el(
    "select",
    {
      "aria-label": "Column of the category",
      "data-focus": "category",
      onchange: ({ target }) => set("category", target.value),
    },
    columns.map(({ name }) => el("option", { value: name, selected: name === rules.category }, name)),
  );
  return el(
    "div",
    { class: "field" },
    el("label", { for: "max" }, "At most, per category"),
    el("span", { class: "pair" }, number, select),
  );
}

function slider(key, label, value, set, [off, format]) {
  const output = el("output", { for: key }, value ? format(value) : off);
  const input = el("input", {
    id: key,
    type: "range",
    min: 0,
    max: 1,
    step: 0.05,
    value: String(value),
    "data-focus": key,
    oninput: ({ target }) => (output.textContent = Number(target.value) ? format(Number(target.value)) : off),
    onchange: ({ target }) => set(Number(target.value)),
  });
  return el("div", { class: "field" }, el("label", { for: key }, label, " ", output), input);
}

function whereField(rules, set, columns, error) {
  const input = el("input", {
    id: "where",
    type: "text",
    spellcheck: "false",
    autocomplete: "off",
    value: rules.where,
    "data-focus": "where",
    "aria-describedby": "where-help",
    "aria-invalid": error ? "true" : null,
    placeholder: "train_events > 100",
    oninput: ({ target }) => (rules.where = target.value), // kept when the panel is drawn again meanwhile
    onchange: ({ target }) => set("where", target.value),
  });
  const insert = (name, type) => {
    const isText = /string|list/.test(type ?? "");
    const text = rules.where.trim();
    input.value = `${text ? `${text} and ` : ""}${name} ${isText ? "= ''" : "> "}`;
    rules.where = input.value;
    input.focus();
    if (isText) input.setSelectionRange(input.value.length - 1, input.value.length - 1); // between the quotes
  };
  const chips = columns.map(({ name, type }) =>
    el(
      "button",
      {
        type: "button",
        class: "chip",
        title: type ? `type ${type}` : null,
        "data-focus": `column-${name}`,
        onclick: () => insert(name, type),
      },
      name,
    ),
  );
  return el(
    "div",
    { class: "field" },
    el("label", { for: "where" }, "Only items with"),
    input,
    el(
      "div",
      { id: "where-help", class: "small" },
      error && el("p", { class: "error-text", role: "alert" }, error),
      chips.length ? el("span", { class: "chips" }, "Columns: ", chips) : null,
    ),
  );
}

function itemList(label, name, rules, set) {
  const ids = rules[name];
  if (!ids.length) return null;
  const chips = ids.map((id) =>
    el(
      "button",
      {
        type: "button",
        class: "chip",
        "aria-label": `${label}: remove ${titleOf(id)}`,
        "data-focus": `${name}-${id}`,
        onclick: () =>
          set(
            name,
            ids.filter((other) => other !== id),
          ),
      },
      titleOf(id),
      el("span", { "aria-hidden": "true" }, " ×"),
    ),
  );
  return el(
    "div",
    { class: "field" },
    el("span", { class: "label" }, label),
    el("div", { class: "chips" }, chips),
  );
}
