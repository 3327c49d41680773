// One request for pictures from its start to its end: previews, progress, pictures, cancel.

import { send, serverSentEvents, streamError } from "./api.js";
import { PREVIEWS, callOf } from "./requests.js";

const SUFFIX = { png: "image/png", jpeg: "image/jpeg", webp: "image/webp" };

// `on` has accepted(response), progress(index, step, numSteps), preview(index, blob) and
// finished(index, blob, seed). Resolves when all pictures are there, throws when one failed.
export class Run {
  #abort = new AbortController();
  #job = null;

  constructor(request, on) {
    this.request = request;
    this.on = on;
  }

  get cancelled() {
    return this.#abort.signal.aborted;
  }

  cancel() {
    const job = this.#job;
    this.#abort.abort();
    // Leaving cancels already; a proxy in between may keep the connection open, though.
    if (job) send(`v1/jobs/${job}`, { method: "DELETE", keepalive: true }).catch(() => {});
  }

  async finish() {
    // Variations have no stream: their job runs by itself and is followed by its events.
    return this.request.kind === "variation" ? this.#finishJob() : this.#finishStream();
  }

  async #finishStream() {
    const { signal } = this.#abort;
    const call = callOf(this.request, { stream: true, partial_images: PREVIEWS });
    const response = await send(this.request.path, { ...call, signal });
    this.#accept(response);
    this.#followProgress().catch(() => {}); // a bar that stands still is no failure
    for await (const { event, data } of serverSentEvents(response)) {
      if (event === "error") throw streamError(data.error);
      const blob = pictureOf(data.b64_json, data.output_format);
      if (event.endsWith(".partial_image")) this.on.preview(data.image_index, blob);
      else if (event.endsWith(".completed")) this.on.finished(data.image_index, blob, data.seed);
    }
  }

  async #finishJob() {
    const { signal } = this.#abort;
    const call = callOf(this.request);
    call.headers.prefer = "respond-async";
    const accepted = await send(this.request.path, { ...call, signal });
    this.#accept(accepted);
    await this.#followProgress();
    const response = await send(`v1/jobs/${this.#job}/result`, { signal });
    const made = await response.json();
    made.data.forEach((item, index) => {
      this.on.finished(index, pictureOf(item.b64_json, made.output_format), item.seed);
    });
  }

  #accept(response) {
    this.#job = response.headers.get("x-rpiae-job");
    this.on.accepted(response);
  }

  async #followProgress() {
    const { signal } = this.#abort;
    const response = await send(`v1/jobs/${this.#job}/events`, { signal });
    for await (const { event, data } of serverSentEvents(response)) {
      if (event === "progress") this.on.progress(data.index, data.step, data.num_steps);
      if (data.done) return;
    }
  }
}

function pictureOf(base64, format) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: SUFFIX[format] });
}
