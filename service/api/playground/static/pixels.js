// Pixels: pictures to canvases and back, colours of numbers, and how far two pictures differ.

export async function bitmapOf(blob) {
  return createImageBitmap(blob);
}

export function canvasOf(bitmap, width = bitmap.width, height = bitmap.height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return canvas;
}

export function blobOf(canvas) {
  return new Promise((resolve) => {
    canvas.toBlob(resolve, "image/png");
  });
}

export function pixelsOf(canvas) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

// In decibels, over the colours of two canvases of one size; Infinity for equal ones.
export function psnr(first, second) {
  const [a, b] = [pixelsOf(first).data, pixelsOf(second).data];
  let sum = 0;
  for (let index = 0; index < a.length; index += 1) {
    if (index % 4 !== 3) sum += (a[index] - b[index]) ** 2;
  }
  const mean = sum / ((a.length / 4) * 3);
  return mean === 0 ? Infinity : 10 * Math.log10(255 ** 2 / mean);
}

// Blue below zero, white at it, orange above.
const ENDS = { low: [33, 82, 178], zero: [247, 247, 245], high: [204, 84, 20] };

function colorOf(value) {
  const end = value < 0 ? ENDS.low : ENDS.high;
  const share = Math.min(1, Math.abs(value));
  return ENDS.zero.map((zero, index) => Math.round(zero + share * (end[index] - zero)));
}

// Paints rows of numbers, `scale` being the one that gets the strongest colour.
export function paintMap(canvas, rows, scale) {
  canvas.height = rows.length;
  canvas.width = rows[0].length;
  const image = new ImageData(canvas.width, canvas.height);
  rows.flat().forEach((value, index) => {
    image.data.set([...colorOf(value / scale), 255], index * 4);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Normally distributed numbers (Box-Muller), the same ones for the same seed.
export function gaussian(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state + 0.5) / 2 ** 32;
  };
  return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
}
