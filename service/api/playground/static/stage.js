// The large picture: previews while it denoises, then the result, with its source to compare.

import { announce, byId, make, show } from "./elements.js";

const HINT = "Pictures appear here, first as previews while the model is still working on them.";

let tiles = [];

export function showEmpty() {
  byId("frame").className = "frame empty";
  byId("frame").replaceChildren(make("p", {}, HINT));
}

// The shape of its picture, and never taller than most of the window.
function fit(tile, width, height) {
  tile.style.aspectRatio = `${width} / ${height}`;
  tile.style.maxWidth = `calc(80vh * ${width / height})`;
}

// Waiting tiles, one for each picture.
export function startRun(count, [height, width]) {
  tiles = Array.from({ length: count }, (_, index) => {
    const label = count > 1 ? `Picture ${index + 1}` : "Picture";
    const image = make("img", { alt: `${label}, not finished`, hidden: true });
    const tile = make("div", { class: "tile waiting" }, image);
    fit(tile, width, height);
    return { tile, image, label, share: 0, url: null };
  });
  byId("frame").className = count > 1 ? "frame several" : "frame";
  byId("frame").replaceChildren(...tiles.map(({ tile }) => tile));
  show(byId("details"), false);
  show(byId("running"));
  byId("stage").scrollIntoView({ block: "nearest", behavior: calm() ? "auto" : "smooth" });
  byId("progress").value = 0;
  byId("step").textContent = "Waiting";
  announce("Waiting for the model.");
}

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

export function showPreview(index, blob) {
  const tile = tiles[index];
  if (tile.url) URL.revokeObjectURL(tile.url);
  tile.url = URL.createObjectURL(blob);
  tile.image.src = tile.url;
  tile.tile.classList.remove("waiting");
  tile.tile.classList.add("preview");
  show(tile.image);
}

export function showProgress(index, step, numSteps) {
  tiles[index].share = Math.max(tiles[index].share, step / numSteps);
  const share = tiles.reduce((sum, tile) => sum + tile.share, 0) / tiles.length;
  const before = Math.floor(4 * byId("progress").value);
  byId("progress").value = share;
  byId("step").textContent =
    tiles.length > 1 ? `${Math.round(100 * share)} %` : `Step ${step} of ${numSteps}`;
  if (Math.floor(4 * share) > before) announce(`${Math.round(100 * share)} % done.`);
}

// A finished picture takes its preview's place; with several, pressing it shows it alone.
export function showFinished(index, result, select) {
  const { tile, url, label } = tiles[index];
  if (url) URL.revokeObjectURL(url);
  const image = make("img", { src: result.url, alt: describe(result) });
  const done = make("button", { type: "button", class: "tile", "aria-label": label }, image);
  fit(done, ...result.size);
  done.addEventListener("click", () => select(result));
  tile.replaceWith(done);
  tiles[index].share = 1;
}

export function endRun() {
  show(byId("running"), false);
  for (const { url } of tiles) if (url) URL.revokeObjectURL(url);
}

export function describe(result) {
  if (result.request.kind === "variation") return `Variation, seed ${result.seed}`;
  return `${result.request.fields.prompt}, seed ${result.seed}`;
}

// One result alone.
export function showResult(result) {
  const image = make("img", { src: result.url, alt: describe(result) });
  const box = make("div", { class: "tile" }, image);
  fit(box, ...result.size);
  byId("frame").className = "frame";
  byId("frame").replaceChildren(box);
  if (result.source) byId("frame").append(compare(box, result.source));
  describeResult(result);
}

// Before and after: the source lies over the result and is cut off where the slider stands.
function compare(box, before) {
  const image = make("img", { src: before.url, alt: "", class: "before" });
  const line = make("span", { class: "divider", "aria-hidden": "true" });
  box.append(image, line);
  box.classList.add("compared");
  const slider = make("input", { type: "range", min: 0, max: 100, value: 0, id: "compare" });
  const place = () => {
    image.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`;
    line.style.left = `${slider.value}%`;
    line.hidden = slider.value === "0";
    slider.setAttribute("aria-valuetext", `${slider.value} % of the picture before`);
  };
  slider.addEventListener("input", place);
  const drag = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const { left, width } = box.getBoundingClientRect();
    slider.value = Math.round((100 * (event.clientX - left)) / width);
    place();
  };
  box.addEventListener("pointerdown", drag);
  box.addEventListener("pointermove", drag);
  box.addEventListener("dragstart", (event) => event.preventDefault());
  place();
  return make(
    "div",
    { class: "compare" },
    make("label", { for: "compare" }, "Before"),
    slider,
    make("span", { "aria-hidden": "true" }, "After"),
  );
}

function describeResult(result) {
  const { request, seed, seconds, size, warning } = result;
  const what = request.kind === "variation" ? "Variation" : request.fields.prompt;
  const facts = [`seed ${seed}`, `${size[0]} × ${size[1]}`, `${seconds.toFixed(1)} s`];
  byId("caption").replaceChildren(
    make("strong", {}, what),
    make("span", {}, facts.join(" · ")),
  );
  byId("warning").textContent = warning;
  show(byId("warning"), Boolean(warning));
  const download = byId("download");
  download.href = result.url;
  download.download = `rpiae-${seed}.png`;
  show(byId("details"));
}
