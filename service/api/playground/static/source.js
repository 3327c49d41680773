// The picture to work on: chosen, dropped, pasted or taken from the results.

import { announce, byId, show } from "./elements.js";
import { resetMask } from "./mask.js";
import { bitmapOf, blobOf, canvasOf } from "./pixels.js";

const READ_BY_THE_SERVICE = ["image/png", "image/jpeg", "image/webp"];
const MAX_SIDE = 2048; // larger ones are reduced: no model looks at more, and bodies stay small
const MAX_BYTES = 8 * 2 ** 20;

let current = null; // { blob, url, size: [width, height], prompt }
let changed = () => {};

export function source() {
  return current;
}

// onChange(source) after each change; onForeign() before a picture from outside is taken.
export function wireSource(onChange, onForeign) {
  changed = onChange;
  const take = (file) => {
    onForeign();
    useFile(file);
  };
  for (const id of ["choose-file", "replace-file"]) {
    byId(id).addEventListener("click", () => byId("file").click());
  }
  byId("file").addEventListener("change", () => {
    const [file] = byId("file").files;
    if (file) take(file);
    byId("file").value = "";
  });
  byId("clear-source").addEventListener("click", () => {
    setSource(null);
    byId("choose-file").focus();
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find(isPicture);
    if (file) take(file);
  });
  wireDropping(take);
}

function wireDropping(take) {
  const lit = (on) => document.body.classList.toggle("dropping", on);
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    lit(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) lit(false);
  });
  document.addEventListener("drop", (event) => {
    lit(false);
    const file = [...event.dataTransfer.files].find(isPicture);
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    if (file) take(file);
    else refuse("That is no picture.");
  });
}

const isPicture = (file) => file.type.startsWith("image/");

async function useFile(file) {
  try {
    await useBlob(file);
  } catch {
    refuse(`${file.name || "This picture"} cannot be read: take a PNG, JPEG or WebP.`);
  }
}

function refuse(message) {
  setSource(null);
  byId("source-empty").firstChild.textContent = `${message} Drop or paste another one, or `;
  announce(message);
}

export async function useBlob(blob, prompt = "") {
  const bitmap = await bitmapOf(blob);
  const side = Math.max(bitmap.width, bitmap.height);
  let kept = blob;
  let size = [bitmap.width, bitmap.height];
  const fine = READ_BY_THE_SERVICE.includes(blob.type) && blob.size <= MAX_BYTES;
  if (side > MAX_SIDE || !fine) {
    const scale = Math.min(1, MAX_SIDE / side);
    size = size.map((length) => Math.max(1, Math.round(length * scale)));
    kept = await blobOf(canvasOf(bitmap, ...size));
  }
  setSource({ blob: kept, url: URL.createObjectURL(kept), size, prompt });
}

function setSource(next) {
  if (current) URL.revokeObjectURL(current.url);
  current = next;
  show(byId("source-picture"), Boolean(next));
  show(byId("source-empty"), !next);
  show(byId("source-tools"), Boolean(next));
  show(byId("mask-tools"), Boolean(next));
  if (next) {
    byId("source-image").src = next.url;
    const [width, height] = next.size;
    byId("source-picture").style.aspectRatio = `${width} / ${height}`;
    byId("source-picture").style.maxWidth = `calc(23rem * ${width / height})`;
    byId("source-note").textContent = `${next.size[0]} × ${next.size[1]} pixels`;
  }
  resetMask(next?.size);
  changed(next);
}
