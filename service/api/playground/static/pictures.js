// Making pictures: a run on the stage, and results with all that belongs to them.

import { announce } from "./elements.js";
import { bitmapOf } from "./pixels.js";
import { requestOfOne } from "./requests.js";
import { Run } from "./running.js";
import { endRun, showFinished, showPreview, showProgress, startRun } from "./stage.js";

// The results; none of a cancelled run. `on` has began(run), made(result) and select(result).
export async function makePictures(request, source, size, on) {
  const startedAt = performance.now();
  const count = Number(request.fields.n) || 1;
  const finishing = [];
  let warning = "";
  const run = new Run(request, {
    accepted: (response) => {
      warning = warningOf(response.headers);
    },
    preview: showPreview,
    progress: showProgress,
    finished: (index, blob, seed) => {
      const seconds = (performance.now() - startedAt) / 1000;
      const about = { blob, seed, seconds, warning, request: requestOfOne(request, seed) };
      finishing.push(finish(index, about, request.kind === "generate" ? null : source, on));
    },
  });
  on.began(run);
  startRun(count, source && request.kind !== "generate" ? [...source.size].reverse() : size);
  try {
    await run.finish();
    const results = await Promise.all(finishing);
    announce(count > 1 ? `${count} pictures are finished.` : "The picture is finished.");
    return results;
  } catch (error) {
    if (!run.cancelled) throw error;
    announce("Cancelled.");
    return [];
  } finally {
    endRun();
  }
}

async function finish(index, about, source, on) {
  const bitmap = await bitmapOf(about.blob);
  const result = {
    ...about,
    url: URL.createObjectURL(about.blob),
    size: [bitmap.width, bitmap.height],
    // Its own address: the source may be replaced while this result is still there to compare.
    source: source && { url: URL.createObjectURL(source.blob) },
  };
  showFinished(index, result, on.select);
  on.made(result);
  return result;
}

function warningOf(headers) {
  const words = (name) =>
    (headers.get(name) ?? "").split(",").filter(Boolean).map(decodeURIComponent);
  const unknown = words("x-rpiae-unknown-words");
  const cut = words("x-rpiae-cut-words");
  const lines = [];
  if (unknown.length) lines.push(`The model does not know: ${unknown.join(", ")}.`);
  if (cut.length) lines.push(`Beyond the length it reads: ${cut.join(" ")}.`);
  return lines.join(" ");
}
