// Example chips, from what the model says it draws.

import { byId, make } from "./elements.js";

const SHOWN_CLASSES = 8;

export function buildExamples(manifest) {
  if (manifest.class_names) offerClasses(manifest.class_names);
  const { class_names: classes, draws } = manifest;
  fill("generate", classes ? someClasses(classes) : prompts(draws));
  showInstructions(draws, "");
}

// Instructions that fit a picture whose prompt is known; general ones for others.
export function showInstructions(draws, prompt) {
  fill("edit", instructions(draws, prompt));
}

function fill(mode, texts) {
  byId(`${mode}-chips`).replaceChildren(
    ...texts.map((text) => {
      const chip = make("button", { type: "button", class: "chip" }, text);
      chip.addEventListener("click", () => {
        byId(`${mode}-prompt`).value = text;
        byId(`${mode}-prompt`).focus();
      });
      return make("li", {}, chip);
    }),
  );
}

// A class has several names, "tench, Tinca tinca": the first one is what people type.
const firstName = (entry) => entry.split(",")[0].trim();

function someClasses(names) {
  const every = Math.max(1, Math.floor(names.length / SHOWN_CLASSES));
  const spread = names.filter((_, index) => index % every === Math.floor(every / 2));
  return spread.slice(0, SHOWN_CLASSES).map(firstName);
}

// One line with suggestions instead of a text area: a class is a name, no sentence.
function offerClasses(names) {
  const area = byId("generate-prompt");
  const input = make("input", {
    id: area.id, name: area.name, type: "text", list: "classes", autocomplete: "off",
    "aria-describedby": area.getAttribute("aria-describedby"),
  });
  area.replaceWith(input);
  byId("generate-prompt-label").textContent = "Class";
  const options = names.map((entry) => make("option", { value: firstName(entry) }));
  byId("classes").replaceChildren(...options);
}

const article = (words) => (/^[aeiou]/.test(words) ? `an ${words}` : `a ${words}`);

const all = (offered = [], ...wanted) => wanted.every((each) => offered.includes(each));

// Places are named where the model knows them: what is said in full is drawn more surely.
function prompts(draws) {
  const { shapes = [], colors = [], things = [], scenes = [], positions } = draws;
  if (!shapes.length || !colors.length) return things.slice(0, SHOWN_CLASSES).map(article);
  const colored = (color, noun) => article(`${colors[color % colors.length]} ${noun}`);
  const item = (color, shape) => colored(color, shapes[shape % shapes.length]);
  const on = (color) => `on ${colored(color, "background")}`;
  const texts = [`${item(0, 0)} ${on(4)}`, `${item(2, 3)} and ${item(5, 4)} ${on(9)}`];
  if (all(positions, "center", "left", "right")) {
    texts[0] = `${item(0, 0)} in the center ${on(4)}`;
    texts[1] = `${item(2, 3)} on the left and ${item(5, 4)} on the right ${on(9)}`;
  }
  if (all(positions, "top left", "bottom right")) {
    texts.push(`${item(6, 4)} in the top left and ${item(4, 6)} in the bottom right ${on(2)}`);
  }
  if (all(positions, "top")) texts.push(`${item(3, 2)} at the top ${on(6)}`);
  if (things.length > 1) texts.push(`${article(things[0])} and ${article(things[1])}`);
  if (things.length && scenes.length) texts.push(`${article(things.at(-1))} on ${scenes[0]}`);
  return texts;
}

function instructions(draws, prompt) {
  const { shapes = [], colors = [], positions, edit_kinds: kinds = [] } = draws;
  const words = prompt.toLowerCase().match(/[a-z]+/g) ?? [];
  const item = shapes.find((shape) => words.includes(shape)) ?? null;
  const other = shapes.find((shape) => !words.includes(shape));
  const [first = "red", second = first] = [...colors.slice(2), ...colors.slice(0, 2)].filter(
    (color) => !words.includes(color),
  );
  const texts = [];
  if (kinds.includes("background")) texts.push(`change the background to ${first}`);
  if (item && kinds.includes("recolour")) texts.push(`make the ${item} ${second}`);
  if (item && other && kinds.includes("replace")) {
    texts.push(`replace the ${item} with ${article(`${second} ${other}`)}`);
  }
  if (item && kinds.includes("remove")) texts.push(`remove the ${item}`);
  if (other && kinds.includes("add")) {
    const place = all(positions, "top left") ? " in the top left" : "";
    texts.push(`add ${article(`${second} ${other}`)}${place}`);
  }
  return texts;
}
