// The dialog that shows a request as code, with the files that the code reads.

import { byId, make, press, wireDialog } from "./elements.js";
import { FILE_NAMES, curlOf, pythonOf } from "./snippets.js";

let shown = null;
let language = "curl";
let links = [];

export function wireCodeDialog() {
  wireDialog(byId("code-dialog"));
  for (const name of ["curl", "python"]) {
    byId(`code-${name}`).addEventListener("click", () => {
      language = name;
      render();
    });
  }
  byId("copy-code").addEventListener("click", copy);
  byId("code-dialog").addEventListener("close", releaseLinks);
}

export function showCode(request, model) {
  shown = { request, model };
  render();
  listFiles(request);
  byId("code-dialog").showModal();
}

function render() {
  for (const name of ["curl", "python"]) press(byId(`code-${name}`), name === language);
  const { request, model } = shown;
  byId("code-text").textContent =
    language === "curl" ? curlOf(request) : pythonOf(request, model);
  byId("copy-note").textContent = "";
}

function listFiles(request) {
  const files = { ...request.files };
  if (request.kind === "decode") {
    files.latents = new Blob([JSON.stringify(request.fields)], { type: "application/json" });
  }
  releaseLinks();
  const place = byId("code-files");
  place.replaceChildren();
  for (const [name, file] of Object.entries(files)) {
    const href = URL.createObjectURL(file);
    links.push(href);
    place.append(place.childNodes.length ? ", " : "It reads ");
    place.append(make("a", { href, download: FILE_NAMES[name] }, FILE_NAMES[name]));
  }
}

function releaseLinks() {
  links.forEach((link) => URL.revokeObjectURL(link));
  links = [];
}

async function copy() {
  const place = byId("code-text");
  const note = byId("copy-note");
  try {
    await navigator.clipboard.writeText(place.textContent);
    note.textContent = "Copied.";
  } catch {
    // Browsers give pages without TLS no clipboard.
    getSelection().selectAllChildren(place);
    note.textContent = "Selected: copy it with Ctrl+C.";
  }
}
