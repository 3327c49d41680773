// Showing what went wrong: the service's own words, the field at fault, and what a report needs.

import { ApiError } from "./api.js";
import { byId, make, show } from "./elements.js";
import { clearMarks, markField } from "./options.js";

export function clearError(form) {
  show(byId("alert"), false);
  if (form) clearMarks(form);
}

export function showError(error, form) {
  if (!(error instanceof ApiError)) throw error;
  const facts = [
    error.status ? `HTTP ${error.status}` : "",
    error.code ?? "",
    error.param ? `field ${error.param}` : "",
    error.requestId ? `request ${error.requestId}` : "",
  ];
  const lines = [make("p", {}, sentence(error.message))];
  if (error.retryAfter) lines.push(make("p", {}, `Try again in ${error.retryAfter} s.`));
  lines.push(make("p", { class: "facts" }, facts.filter(Boolean).join(" · ")));
  const alert = byId("alert");
  alert.replaceChildren(...lines);
  show(alert);
  const marked = form && error.param && markField(form, error.param, sentence(error.message));
  if (!marked) alert.scrollIntoView({ block: "nearest" });
}

// What the forms that work on a picture say without one.
export function noSource() {
  return new ApiError({
    message: "There is no picture yet: drop, paste or choose one first",
    code: "no_picture",
  });
}

function sentence(message) {
  const text = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
