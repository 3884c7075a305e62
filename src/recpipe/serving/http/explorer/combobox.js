// Text field with a list of suggestions: arrows move, Enter chooses, Escape closes (ARIA combobox with a listbox).

import { announce, debounce, el, plural, replace } from "./dom.js";

// find(text, signal) -> suggestions; show(suggestion) -> children of an option; choose(suggestion) after a choice.
// stayOpen: the list remains for further choices. noun: of a suggestion, for screen readers.
export function combobox(input, list, { find, show, choose, stayOpen = false, noun }) {
  let suggestions = [];
  let active = -1;
  let controller = null;
  let isPending = false; // suggestions are of an earlier text
  let isWanted = false; // Enter was pressed meanwhile

  function close() {
    controller?.abort();
    isPending = isWanted = false;
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function activate(place) {
    active = place;
    [...list.children].forEach((option, index) => {
      if (option.getAttribute("role") === "option")
        option.setAttribute("aria-selected", String(index === active));
    });
    const option = active >= 0 ? list.children[active] : null;
    if (option) {
      input.setAttribute("aria-activedescendant", option.id);
      option.scrollIntoView({ block: "nearest" });
    } else input.removeAttribute("aria-activedescendant");
  }

  function draw(text) {
    const options = suggestions.map((suggestion, place) =>
      el(
        "li",
        { role: "option", id: `${list.id}-${place}`, "aria-selected": "false", onclick: () => take(place) },
        show(suggestion),
      ),
    );
    replace(list, options.length ? options : el("li", { class: "none" }, text));
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    activate(suggestions.length ? 0 : -1);
  }

  function take(place) {
    const suggestion = suggestions[place];
    if (!suggestion) return;
    choose(suggestion);
    if (stayOpen) {
      draw();
      activate(place);
      input.select();
    } else {
      input.value = "";
      close();
    }
  }

  async function search() {
    controller?.abort();
    controller = new AbortController();
    const { signal } = controller;
    try {
      suggestions = await find(input.value.trim(), signal);
      if (signal.aborted) return;
      isPending = false;
      draw(`No ${noun} matches “${input.value.trim()}”.`);
      announce(
        suggestions.length ? `${plural(suggestions.length, noun)}; arrows move, Enter chooses` : `no ${noun}`,
      );
      if (isWanted) take(0);
      isWanted = false;
    } catch (error) {
      if (signal.aborted) return;
      suggestions = [];
      isPending = isWanted = false;
      draw(error.message);
      announce(error.message);
    }
  }

  const later = debounce(search, 120);
  input.addEventListener("input", () => {
    controller?.abort(); // suggestions of an earlier text
    isPending = true;
    later();
  });
  input.addEventListener("focus", () => list.hidden && search());
  input.addEventListener("click", () => list.hidden && search());
  input.addEventListener("blur", () => setTimeout(() => document.activeElement !== input && close(), 0));
  list.addEventListener("pointerdown", (event) => event.preventDefault()); // the focus stays in the field
  input.addEventListener("keydown", (event) => {
    const last = suggestions.length - 1;
    const moves = { ArrowDown: active < last ? active + 1 : 0, ArrowUp: active > 0 ? active - 1 : last };
    if (event.key in moves) {
      event.preventDefault();
      if (list.hidden) search();
      else if (last >= 0) activate(moves[event.key]);
    } else if (event.key === "Enter" && (isPending || !list.hidden)) {
      event.preventDefault();
      if (isPending) isWanted = true;
      else take(active);
    } else if (event.key === "Escape") {
      if (list.hidden) input.value = "";
      close();
    }
  });
}
