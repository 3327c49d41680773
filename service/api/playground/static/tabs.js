// The tabs: arrow keys move between them, and only what the model can do is offered.

import { byId, show } from "./elements.js";

export const TASK_OF_TAB = {
  generate: "generate",
  edit: "edit",
  variation: "variation",
  latents: "encode",
};

let changed = () => {};
let names = Object.keys(TASK_OF_TAB);
let current = "generate";

const tab = (name) => byId(`tab-${name}`);

export function currentTab() {
  return current;
}

export function wireTabs(onChange) {
  changed = onChange;
  for (const name of names) tab(name).addEventListener("click", () => openTab(name));
  document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
    const place = names.indexOf(current);
    const target = {
      ArrowRight: names[(place + 1) % names.length],
      ArrowLeft: names[(place + names.length - 1) % names.length],
      Home: names[0],
      End: names[names.length - 1],
    }[event.key];
    if (!target) return;
    event.preventDefault();
    openTab(target);
    tab(target).focus();
  });
}

export function offerTabs(tasks) {
  names = names.filter((name) => tasks.includes(TASK_OF_TAB[name]));
  for (const name of Object.keys(TASK_OF_TAB)) show(tab(name), names.includes(name));
  if (!names.includes(current)) openTab(names[0]);
}

export function offers(name) {
  return names.includes(name);
}

export function openTab(name) {
  current = name;
  for (const each of Object.keys(TASK_OF_TAB)) {
    const selected = each === name;
    tab(each).setAttribute("aria-selected", String(selected));
    tab(each).tabIndex = selected ? 0 : -1;
    show(byId(`panel-${each}`), selected);
  }
  changed(name);
}
