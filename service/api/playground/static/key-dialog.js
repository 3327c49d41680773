// Asking for the API key, when the service wants one or when the visitor does.

import { onKeyNeeded, storeKey, storedKey } from "./api.js";
import { byId, wireDialog } from "./elements.js";

const NOTE = "Kept in this tab only, until you close it.";
let asking = null;

export function wireKeyDialog() {
  const dialog = byId("key-dialog");
  wireDialog(dialog);
  byId("open-key").addEventListener("click", () => open(NOTE));
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    storeKey(byId("key").value.trim());
    dialog.close("given");
  });
  byId("forget-key").addEventListener("click", () => {
    storeKey("");
    dialog.close();
  });
  onKeyNeeded(ask);
}

function open(note) {
  const dialog = byId("key-dialog");
  byId("key-note").textContent = note;
  byId("key").value = storedKey();
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
}

// Requests that are refused while the dialog is open wait for the same answer.
function ask(message) {
  asking ??= new Promise((resolve) => {
    open(`${message}. ${NOTE}`);
    byId("key-dialog").addEventListener(
      "close",
      () => {
        asking = null;
        resolve(byId("key-dialog").returnValue === "given" && storedKey() !== "");
      },
      { once: true },
    );
  });
  return asking;
}
