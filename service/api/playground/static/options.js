// The options of each form: made from what the model says of itself, read back as fields.

import { byId, make } from "./elements.js";

// Of models.manifest.SAMPLERS; a test compares the two.
export const SAMPLERS = ["euler", "euler-reference", "heun", "dpmpp-2m", "unipc"];

const SEED = { name: "seed", label: "Seed", kind: "text", placeholder: "random" };
const PICTURES = { name: "n", label: "Pictures", kind: "choice", choices: [1, 2, 3, 4], value: 1 };

function optionsFor(mode, manifest) {
  const guidance = manifest.default_guidance_scale;
  const steps = {
    name: "steps", label: "Steps", kind: "range", value: manifest.default_steps,
    min: 1, max: manifest.max_steps, step: 1,
  };
  const sampler = {
    name: "sampler", label: "Sampler", kind: "choice", choices: SAMPLERS, value: manifest.sampler,
  };
  const scale = {
    name: "guidance_scale", label: "Guidance", kind: "range", value: guidance,
    min: 0, max: Math.max(10, Math.ceil(guidance)), step: 0.1,
  };
  const negative = { name: "negative_prompt", label: "Not in the picture", kind: "text" };
  const imageScale = {
    ...scale, name: "image_guidance_scale", label: "Source guidance",
    value: manifest.default_image_guidance_scale,
  };
  const strength = {
    name: "strength", label: "Strength", kind: "range", value: 1, min: 0.05, max: 1, step: 0.05,
  };
  const own = {
    generate: [scale, sampler, ...(takesNegativePrompt(manifest) ? [negative] : [])],
    edit: [scale, imageScale, strength, sampler],
    variation: [{ ...strength, value: 0.8 }, sampler],
  };
  return [SEED, PICTURES, steps, ...own[mode]];
}

// A weaker model guides instead, or there is nothing but the class to speak of.
function takesNegativePrompt(manifest) {
  return manifest.guidance !== "autoguidance" && !manifest.class_names;
}

export function buildOptions(mode, manifest) {
  const form = byId(`form-${mode}`);
  // Where the picture comes below the form, it shall not be far below.
  form.querySelector(".more").open = matchMedia("(min-width: 54rem)").matches;
  const fields = optionsFor(mode, manifest).map((option) => field(mode, option));
  form.querySelector(".options").append(...fields);
}

function field(mode, option) {
  const id = `${mode}-${option.name}`;
  const error = make("p", { id: `${id}-error`, class: "field-error", hidden: true });
  const control = controlFor(id, option);
  const label = make("label", { for: id }, option.label);
  const children = [label, control, error];
  if (option.kind === "range") {
    const output = make("output", { for: id }, String(option.value));
    control.addEventListener("input", () => {
      output.textContent = control.value;
    });
    label.append(" ", output);
  }
  return make("div", { class: "field" }, ...children);
}

function controlFor(id, { name, kind, value, choices, placeholder, min, max, step }) {
  const shared = { id, name, "aria-describedby": `${id}-error` };
  if (kind === "choice") {
    const items = choices.map((each) => make("option", { selected: each === value }, String(each)));
    return make("select", { ...shared, "data-default": value }, ...items);
  }
  if (kind === "range") {
    const slider = make("input", { ...shared, type: "range", min, max, step, value });
    slider.dataset.default = slider.value; // a default between two steps is rounded, not chosen
    return slider;
  }
  return make("input", { ...shared, type: "text", placeholder, autocomplete: "off" });
}

// What is left at its default is not sent: the code shows only what was chosen. A seed that is no
// number goes to the service as it is, which says what is wrong with it.
export function readFields(form) {
  const fields = {};
  for (const control of form.elements) {
    const text = control.name ? control.value.trim() : "";
    if (!control.name || (control.name !== "prompt" && text === "")) continue;
    if (control.dataset.default === text) continue;
    const numeric = control.type === "range" || control.name === "n" || control.name === "seed";
    fields[control.name] = numeric && Number.isFinite(Number(text)) ? Number(text) : text;
  }
  return fields;
}

// Values of an earlier request; whatever it left out goes back to its default.
export function setField(mode, name, value) {
  const control = byId(`${mode}-${name}`);
  control.closest("details")?.setAttribute("open", "");
  control.value = value;
  control.dispatchEvent(new Event("input", { bubbles: true }));
}

// Marks the field that an error names, says why under it, and moves there. False: no such field.
export function markField(form, param, message) {
  const id = `${form.dataset.mode}-${param}`;
  const control = byId(id);
  const place = byId(`${id}-error`);
  if (!control || !place) return false;
  place.textContent = message;
  place.hidden = false;
  control.closest("details")?.setAttribute("open", "");
  control.setAttribute("aria-invalid", "true");
  control.focus();
  return true;
}

export function clearMarks(form) {
  for (const place of form.querySelectorAll(".field-error")) place.hidden = true;
  for (const control of form.querySelectorAll("[aria-invalid]")) {
    control.removeAttribute("aria-invalid");
  }
}
