// What the tokenizer makes of a picture: its channels as maps, and the picture decoded from them.

import { send } from "./api.js";
import { announce, byId, make, press, show } from "./elements.js";
import { bitmapOf, canvasOf, gaussian, paintMap, psnr } from "./pixels.js";
import { callOf, makeRequest } from "./requests.js";

const NOISE_SEED = 1;

let encoded = null; // { latents: (C, h, w), box, pixels: canvas of the source, scale }
let silenced = new Set();

export function wireLatents() {
  byId("noise").addEventListener("input", () => {
    byId("noise-value").textContent = byId("noise").value;
  });
  byId("latents-reset").addEventListener("click", () => {
    silenced = new Set();
    byId("noise").value = 0;
    byId("noise-value").textContent = "0";
    paintChannels();
  });
}

export function encodeRequest(source) {
  return makeRequest("encode", {}, { image: source.blob });
}

// Encodes a source, shows its channels and decodes them.
export async function encode(source) {
  const request = encodeRequest(source);
  const call = callOf(request);
  call.headers.accept = "application/json";
  const response = await send(request.path, call);
  const answer = await response.json();
  const box = response.headers.get("x-rpiae-box");
  const [, , width, height] = box.split(",").map(Number);
  const pixels = canvasOf(await bitmapOf(source.blob), width, height);
  const [latents] = answer.latents;
  const scale = Math.max(...latents.flat(2).map(Math.abs));
  encoded = { latents, box, pixels, scale };
  silenced = new Set();
  copyTo("latents-source", pixels);
  describe(answer.shape);
  paintChannels();
  showAll(true);
  await decode();
}

// Without a picture there is nothing to show.
export function clearLatents() {
  encoded = null;
  showAll(false);
}

function showAll(visible) {
  show(byId("latents-empty"), !visible);
  show(byId("latents-pair"), visible);
  show(byId("channels-block"), visible);
}

export function decodeRequest() {
  return makeRequest("decode", { latents: changedLatents() }, {}, { box: encoded.box });
}

export async function decode() {
  const request = decodeRequest();
  const path = `${request.path}?${new URLSearchParams(request.query)}`;
  const call = callOf(request);
  call.headers.accept = "image/png";
  const response = await send(path, call);
  const decoded = canvasOf(await bitmapOf(await response.blob()));
  copyTo("latents-decoded", decoded);
  const decibels = psnr(encoded.pixels, decoded);
  byId("psnr").textContent = `Decoded, PSNR ${decibels.toFixed(1)} dB`;
}

function copyTo(id, canvas) {
  const target = byId(id);
  [target.width, target.height] = [canvas.width, canvas.height];
  target.getContext("2d").drawImage(canvas, 0, 0);
}

function describe([, channels, height, width]) {
  const numbers = channels * height * width;
  const pixels = encoded.pixels.width * encoded.pixels.height * 3;
  byId("channels-note").textContent =
    `${channels} of ${height} × ${width}, ${Math.round(pixels / numbers)} times fewer numbers ` +
    `than the picture's. Blue is negative, orange positive, up to ${encoded.scale.toFixed(1)}. ` +
    "Press one to silence it, then decode.";
}

function changedLatents() {
  const noise = Number(byId("noise").value);
  const draw = gaussian(NOISE_SEED);
  return encoded.latents.map((rows, channel) =>
    rows.map((row) =>
      row.map((value) => (silenced.has(channel) ? 0 : value) + (noise ? noise * draw() : 0)),
    ),
  );
}

function paintChannels() {
  byId("channels").replaceChildren(
    ...encoded.latents.map((rows, channel) => {
      const canvas = make("canvas", { "aria-hidden": "true" });
      paintMap(canvas, rows, encoded.scale);
      const values = rows.flat();
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      const name = `Channel ${channel}`;
      const button = make(
        "button",
        {
          type: "button", "aria-pressed": "false", title: `${name}, mean ${mean.toFixed(2)}`,
          "aria-label": `${name}, mean ${mean.toFixed(2)}`,
        },
        canvas,
      );
      button.addEventListener("click", () => toggle(channel, button));
      return button;
    }),
  );
}

function toggle(channel, button) {
  if (!silenced.delete(channel)) silenced.add(channel);
  press(button, silenced.has(channel));
  announce(`${silenced.size} channels silenced.`);
}
