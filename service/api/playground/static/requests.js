// What is sent: one plain object for each request, from which both the call and the code are made.
//
// { kind, path, fields, files, query }: fields of the JSON body or the form; files by field name.

const PATHS = {
  generate: "v1/images/generations",
  edit: "v1/images/edits",
  variation: "v1/images/variations",
  encode: "v1/latents/encode",
  decode: "v1/latents/decode",
};

export const PREVIEWS = 3;

export function makeRequest(kind, fields = {}, files = {}, query = {}) {
  return { kind, path: PATHS[kind], fields, files, query };
}

export function pathWithQuery(request) {
  const query = new URLSearchParams(request.query).toString();
  return query ? `${request.path}?${query}` : request.path;
}

// Options of send() for a request, with further fields that only this page needs.
export function callOf(request, more = {}) {
  const fields = { ...request.fields, ...more };
  if (request.kind === "encode") {
    const image = request.files.image;
    return { method: "POST", headers: { "content-type": image.type }, body: image };
  }
  if (request.kind === "generate" || request.kind === "decode") {
    const headers = { "content-type": "application/json" };
    return { method: "POST", headers, body: JSON.stringify(fields) };
  }
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, String(value));
  for (const [name, file] of Object.entries(request.files)) form.append(name, file, `${name}.png`);
  return { method: "POST", headers: {}, body: form };
}

// The request for one picture of several, which gives that picture again.
export function requestOfOne(request, seed) {
  const fields = { ...request.fields, seed };
  delete fields.n;
  return { ...request, fields };
}
