// Painting what may change: a canvas over the source, in the source's own pixels.

import { byId, press, show } from "./elements.js";
import { blobOf, pixelsOf } from "./pixels.js";

// Stripes of two colours, one of which stands out from any picture. What is opaque on this canvas
// may change; the style sheet lets the picture show through.
const STRIPES = ["#ffffff", "#16181d"];
const STRIPES_ACROSS = 32; // of the longer side

let erasing = false;
let last = null;
let paint = STRIPES[0];

const canvas = () => byId("mask");

export function wireMask() {
  byId("use-mask").addEventListener("change", update);
  byId("tool-paint").addEventListener("click", () => choose(false));
  byId("tool-erase").addEventListener("click", () => choose(true));
  byId("mask-clear").addEventListener("click", clear);
  byId("rect-apply").addEventListener("click", paintRectangle);
  canvas().addEventListener("pointerdown", (event) => {
    canvas().setPointerCapture(event.pointerId);
    last = null;
    stroke(event);
    event.preventDefault();
  });
  canvas().addEventListener("pointermove", (event) => {
    if (event.buttons) stroke(event);
  });
  canvas().addEventListener("pointerup", describe);
}

// A new source, or none: what was painted for another one is gone.
export function resetMask(size) {
  byId("use-mask").checked = false;
  if (size) {
    [canvas().width, canvas().height] = size;
    paint = stripes(Math.max(2, Math.round(Math.max(...size) / STRIPES_ACROSS / 2)));
    byId("rect-width").value = Math.ceil(size[0] / 2);
    byId("rect-height").value = Math.ceil(size[1] / 2);
    for (const [name, most] of [["left", size[0] - 1], ["top", size[1] - 1],
      ["width", size[0]], ["height", size[1]]]) byId(`rect-${name}`).max = most;
    const brush = byId("brush");
    brush.max = Math.max(8, Math.round(Math.max(...size) / 2));
    brush.value = Math.round(Math.max(...size) / 6);
  }
  update();
}

export function showMask(visible) {
  show(canvas(), visible && byId("use-mask").checked);
}

function update() {
  const used = byId("use-mask").checked;
  show(byId("mask-controls"), used);
  show(canvas(), used);
  describe();
}

function choose(erase) {
  erasing = erase;
  press(byId("tool-paint"), !erase);
  press(byId("tool-erase"), erase);
}

function pen() {
  const context = canvas().getContext("2d", { willReadFrequently: true });
  context.globalCompositeOperation = erasing ? "destination-out" : "source-over";
  context.fillStyle = paint;
  context.strokeStyle = paint;
  context.lineCap = "round";
  return context;
}

// Diagonal stripes so many pixels wide.
function stripes(width) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 2 * width;
  const context = tile.getContext("2d");
  for (let x = 0; x < tile.width; x += 1) {
    for (let y = 0; y < tile.height; y += 1) {
      context.fillStyle = STRIPES[Math.floor((x + y) / width) % 2];
      context.fillRect(x, y, 1, 1);
    }
  }
  return context.createPattern(tile, "repeat");
}

function stroke(event) {
  const box = canvas().getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * canvas().width;
  const y = ((event.clientY - box.top) / box.height) * canvas().height;
  const context = pen();
  context.lineWidth = Number(byId("brush").value);
  context.beginPath();
  context.moveTo(...(last ?? [x, y]));
  context.lineTo(x, y);
  context.stroke();
  last = [x, y];
}

function paintRectangle() {
  const [x, y, width, height] = ["left", "top", "width", "height"].map((name) =>
    Number(byId(`rect-${name}`).value),
  );
  pen().fillRect(x, y, width, height);
  describe();
}

function clear() {
  canvas().getContext("2d").clearRect(0, 0, canvas().width, canvas().height);
  describe();
}

// Half painted edges of a stroke count as painted, so that what is kept is kept whole.
function paintedShare() {
  if (!canvas().width || !canvas().height) return 0;
  const { data } = pixelsOf(canvas());
  let painted = 0;
  for (let index = 3; index < data.length; index += 4) painted += data[index] > 0 ? 1 : 0;
  return painted / (data.length / 4);
}

function describe() {
  if (!byId("use-mask").checked) return;
  const share = paintedShare();
  byId("mask-note").textContent = share
    ? `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} % may change, the rest stays as it is.`
    : "Nothing is painted yet: paint over what may change.";
}

// The mask as the service takes it: transparent where painted, opaque elsewhere. Null: not used.
export async function maskFile() {
  if (!byId("use-mask").checked) return null;
  const painted = pixelsOf(canvas());
  const file = document.createElement("canvas");
  [file.width, file.height] = [canvas().width, canvas().height];
  const image = new ImageData(file.width, file.height);
  for (let index = 3; index < painted.data.length; index += 4) {
    image.data[index] = painted.data[index] > 0 ? 0 : 255;
  }
  file.getContext("2d").putImageData(image, 0, 0);
  return blobOf(file);
}
