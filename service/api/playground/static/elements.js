// Finding and making elements; text only ever becomes text.

export function byId(id) {
  return document.getElementById(id);
}

// make("button", { type: "button", "aria-pressed": "true" }, "Paint")
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, String(value));
    }
  }
  element.append(...children);
  return element;
}

export function show(element, visible = true) {
  element.hidden = !visible;
}

export function press(button, pressed) {
  button.setAttribute("aria-pressed", String(pressed));
}

// Tells a screen reader; the same text twice is read twice.
export function announce(text) {
  const region = byId("announcement");
  region.textContent = "";
  requestAnimationFrame(() => {
    region.textContent = text;
  });
}

// A dialog's [data-close] buttons close it, and so does a click beside it.
export function wireDialog(dialog) {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
  });
}
