// Dialog with the nearest items of an item, by the vectors of a model.

import { api } from "./api.js";
import { byId, decimal, el, picture, titled } from "./dom.js";
import { remember, titleOf } from "./state.js";

const K = 12;

// models: those with vectors of items; add(id, title): puts an item into the history.
export async function showSimilar(id, models, chosen, { add, images }) {
  const dialog = byId("similar");
  const model = models.find(({ name }) => name === chosen) ?? models[0];
  const body = el("div", { "aria-busy": "true" }, el("p", { class: "muted" }, "Searching …"));
  const select = el(
    "select",
    {
      "aria-label": "Model",
      onchange: ({ target }) => showSimilar(id, models, target.value, { add, images }),
    },
    models.map(({ name }) => el("option", { value: name, selected: name === model?.name }, name)),
  );
  dialog.replaceChildren(
    el(
      "div",
      { class: "heading" },
      el("h2", { id: "similar-title" }, "Nearest to ", el("span", { class: "title" }, titleOf(id))),
      el(
        "button",
        { type: "button", class: "icon", "aria-label": "Close", onclick: () => dialog.close() },
        "×",
      ),
    ),
    el("p", { class: "small muted" }, "By the item vectors of ", select),
    body,
  );
  if (!dialog.open) dialog.showModal();
  try {
    if (!model) throw new Error("No model of this service has vectors of items.");
    const answer = await api.similar({ model: model.name, item: id, k: K });
    const rows = answer.items.map((item) => {
      remember(item.item_id, item.title);
      const fill = el("i");
      fill.style.width = `${100 * Math.max(item.similarity, 0)}%`;
      return el(
        "li",
        {},
        picture(item.item_id, images),
        el(
          "button",
          {
            type: "button",
            class: "title",
            "aria-label": `Add to the history: ${titled(item.title, item.item_id)}`,
            onclick: () => add(item.item_id, item.title),
          },
          titled(item.title, item.item_id),
        ),
        el("span", { class: "chance" }, decimal(item.similarity)),
        el("span", { class: "bar", "aria-hidden": "true" }, fill),
      );
    });
    body.replaceChildren(
      rows.length ? el("ol", { class: "items" }, rows) : el("p", { class: "none" }, "No item is near."),
    );
  } catch (error) {
    body.replaceChildren(el("p", { class: "notice error", role: "alert" }, error.message));
  }
  body.setAttribute("aria-busy", "false");
}
