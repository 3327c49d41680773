// The page: asks for the model, builds what fits it, and joins forms, stage and history.

import { send } from "./api.js";
import { showCode, wireCodeDialog } from "./code-dialog.js";
import { announce, byId, show } from "./elements.js";
import { clearError, noSource, showError } from "./errors.js";
import { buildExamples, showInstructions } from "./examples.js";
import { addToHistory, markSelected, wireHistory } from "./history.js";
import { wireKeyDialog } from "./key-dialog.js";
import {
  clearLatents, decode, decodeRequest, encode, encodeRequest, wireLatents,
} from "./latents.js";
import { maskFile, showMask, wireMask } from "./mask.js";
import { buildOptions, readFields, setField } from "./options.js";
import { makePictures } from "./pictures.js";
import { makeRequest } from "./requests.js";
import { source, useBlob, wireSource } from "./source.js";
import { showEmpty, showResult } from "./stage.js";
import { TASK_OF_TAB, currentTab, offerTabs, offers, openTab, wireTabs } from "./tabs.js";

const READY_EVERY_MS = 5000;
const PICTURE_FORMS = ["generate", "edit", "variation"];

let model = null; // id and manifest of the served model
let running = false; // a form for pictures is being served
let run = null; // its request, once it is on its way
let selected = null; // the result that the stage shows alone

async function start() {
  wireKeyDialog();
  wireCodeDialog();
  wireTabs(onTab);
  wireMask();
  wireLatents();
  wireSource(onSource, leaveGenerate);
  wireHistory(select);
  wireForms();
  wireResult();
  showEmpty();
  watchReadiness();
  try {
    const response = await send("v1/models");
    [model] = (await response.json()).data;
  } catch (error) {
    showError(error);
    return;
  }
  buildFor(model);
}

function buildFor({ id, manifest }) {
  const [height, width] = manifest.image_size;
  byId("model").textContent = `${id} · ${width} × ${height}`;
  const [channels, rows, columns] = manifest.latent_shape;
  byId("latents-note").textContent =
    `${width} × ${height} pixels become ${channels} channels of ${rows} × ${columns}.`;
  for (const mode of PICTURE_FORMS) buildOptions(mode, manifest);
  buildExamples(manifest);
  offerTabs(manifest.tasks);
  document.body.dataset.ready = "true";
}

// Says what is missing while no worker can serve.
async function watchReadiness() {
  const banner = byId("readiness");
  for (;;) {
    try {
      const response = await fetch(new URL("readyz", document.baseURI));
      const answer = await response.json();
      show(banner, !response.ok);
      if (response.ok) return;
      banner.textContent = `Not ready yet: ${answer.reason}.`;
    } catch {
      banner.textContent = "The service does not answer.";
      show(banner);
    }
    await new Promise((resolve) => {
      setTimeout(resolve, READY_EVERY_MS);
    });
  }
}

function onTab(name) {
  show(byId("source"), name !== "generate");
  showMask(name === "edit");
  const latents = name === "latents";
  show(byId("stage"), !latents);
  show(byId("latents"), latents);
  clearError();
}

function onSource(next) {
  showMask(currentTab() === "edit");
  clearLatents();
  if (model) showInstructions(model.manifest.draws, next?.prompt ?? "");
}

// A picture from outside means work on it.
function leaveGenerate() {
  if (currentTab() !== "generate") return;
  const target = ["edit", "variation", "latents"].find(offers);
  if (target) openTab(target);
}

function wireForms() {
  for (const form of document.querySelectorAll("form[data-mode]")) {
    const prompt = form.querySelector("[name=prompt]");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      guarded(form, () => submit(form));
    });
    prompt?.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    });
    form.querySelector(".cancel")?.addEventListener("click", cancel);
    form.querySelector(".code").addEventListener("click", () =>
      guarded(form, async () => showCode(await requestOf(form), model.id)),
    );
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) cancel();
  });
  addEventListener("pagehide", cancel); // nobody is left to look at it
  byId("decode").addEventListener("click", () => guarded(byId("form-encode"), decode));
  byId("decode-code").addEventListener("click", () => showCode(decodeRequest(), model.id));
}

// Runs something that may fail, and shows what it failed of.
async function guarded(form, action) {
  clearError(form);
  try {
    await action();
  } catch (error) {
    showError(error, form);
  }
}

async function requestOf(form) {
  const mode = form.dataset.mode;
  if (mode === "generate") return makeRequest(mode, readFields(form));
  if (!source()) throw noSource();
  if (mode === "encode") return encodeRequest(source());
  const files = { image: source().blob };
  const mask = mode === "edit" ? await maskFile() : null;
  if (mask) files.mask = mask;
  return makeRequest(mode, readFields(form), files);
}

async function submit(form) {
  if (form.dataset.mode === "encode") {
    if (!source()) throw noSource();
    await encode(source());
    return;
  }
  if (running) return;
  setRunning(true);
  markSelected(null);
  let results = [];
  try {
    results = await makePictures(await requestOf(form), source(), model.manifest.image_size, {
      began: (started) => {
        run = started;
      },
      made: addToHistory,
      select,
    });
  } finally {
    run = null;
    setRunning(false);
    if (!results.length) restoreStage();
  }
  if (results.length === 1) present(results[0]);
}

function restoreStage() {
  if (selected) present(selected);
  else showEmpty();
}

function cancel() {
  run?.cancel();
}

// The button stays where it is, so that the keyboard's place is kept.
function setRunning(on) {
  running = on;
  document.body.classList.toggle("busy", running);
  for (const mode of PICTURE_FORMS) {
    const form = byId(`form-${mode}`);
    form.querySelector(".primary").setAttribute("aria-disabled", String(running));
    const button = form.querySelector(".cancel");
    const focused = document.activeElement === button;
    show(button, running);
    if (focused) form.querySelector(".primary").focus();
  }
}

// A visitor's choice; a run that is under way keeps the stage.
function select(result) {
  if (currentTab() === "latents") openTab("generate");
  present(result);
}

function present(result) {
  selected = result;
  if (!running) showResult(result);
  markSelected(result);
}

function wireResult() {
  const work = (tab) => async () => {
    await useBlob(selected.blob, selected.request.fields.prompt ?? "");
    openTab(tab);
    if (tab === "edit") byId("edit-prompt").focus();
    else byId(`form-${TASK_OF_TAB[tab]}`).requestSubmit();
  };
  byId("edit-result").addEventListener("click", work("edit"));
  byId("vary-result").addEventListener("click", work("variation"));
  byId("encode-result").addEventListener("click", work("latents"));
  byId("reuse-seed").addEventListener("click", reuseSeed);
  byId("result-code").addEventListener("click", () => showCode(selected.request, model.id));
  byId("crisp").addEventListener("change", () => {
    document.body.classList.toggle("crisp", byId("crisp").checked);
  });
}

function reuseSeed() {
  const mode = currentTab() === "latents" ? selected.request.kind : currentTab();
  openTab(mode);
  setField(mode, "seed", selected.seed);
  byId(`${mode}-seed`).focus();
  announce(`Seed ${selected.seed} is set.`);
}

start();
