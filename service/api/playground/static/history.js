// The strip of results, newest first; nothing of it outlives the page.

import { byId, make, show } from "./elements.js";
import { describe } from "./stage.js";

const MOST = 60; // pictures held in memory

let results = [];
let select = () => {};

export function wireHistory(onSelect) {
  select = onSelect;
}

export function addToHistory(result) {
  results.unshift(result);
  results.slice(MOST).forEach(release);
  results = results.slice(0, MOST);
  const image = make("img", { src: result.url, alt: "" });
  const label = describe(result);
  const button = make("button", { type: "button", "aria-label": label, title: label }, image);
  button.addEventListener("click", () => select(result));
  result.item = make("li", {}, button);
  byId("history-list").prepend(result.item);
  show(byId("history"));
}

export function markSelected(result) {
  for (const each of results) {
    const button = each.item.firstChild;
    if (each === result) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

function release(result) {
  result.item.remove();
  URL.revokeObjectURL(result.url);
  if (result.source) URL.revokeObjectURL(result.source.url);
}
