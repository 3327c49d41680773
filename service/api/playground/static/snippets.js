// A request as a curl command and as Python with the openai client.

import { address, storedKey } from "./api.js";
import { pathWithQuery } from "./requests.js";

// Names under which each request's files are offered beside its code.
export const FILE_NAMES = { image: "image.png", mask: "mask.png", latents: "latents.json" };

const METHODS = { generate: "generate", edit: "edit", variation: "create_variation" };
const OPENAI_FIELDS = ["prompt", "n"];

function quoted(text) {
  return `'${String(text).replaceAll("'", "'\\''")}'`;
}

export function curlOf(request) {
  const lines = [`curl -sS ${quoted(address(pathWithQuery(request)))}`];
  if (storedKey()) lines.push('-H "Authorization: Bearer $RPIAE_API_KEY"');
  const several = (request.fields.n ?? 1) > 1;
  if (request.kind === "encode") {
    lines.push("-H 'Accept: application/json'", `-H 'Content-Type: ${request.files.image.type}'`);
    lines.push(`--data-binary @${FILE_NAMES.image}`, "-o encoded.json");
    return joined(lines);
  }
  if (!several) lines.push("-H 'Accept: image/png'");
  if (request.kind === "decode") {
    lines.push("-H 'Content-Type: application/json'", `--data-binary @${FILE_NAMES.latents}`);
  } else if (request.kind === "generate") {
    const body = quoted(JSON.stringify(request.fields));
    lines.push("-H 'Content-Type: application/json'", `-d ${body}`);
  } else {
    for (const name of Object.keys(request.files)) lines.push(`-F ${name}=@${FILE_NAMES[name]}`);
    // -F would read a value that begins with @ or < from a file.
    for (const [name, value] of Object.entries(request.fields)) {
      lines.push(`--form-string ${quoted(`${name}=${value}`)}`);
    }
  }
  lines.push(several ? "-o pictures.json" : "-o out.png");
  return joined(lines);
}

function joined(lines) {
  return lines.join(" \\\n  ");
}

export function pythonOf(request, model) {
  const needsKey = Boolean(storedKey());
  const key = needsKey ? 'os.environ["RPIAE_API_KEY"]' : '"unused"';
  const body = request.kind in METHODS ? pictureCall(request, model) : latentCall(request);
  const imports = ["import base64", "import json", "import os"].filter((line) => {
    const name = line.split(" ")[1];
    return name === "os" ? needsKey : body.includes(`${name}.`);
  });
  const plain = request.kind === "decode" || request.kind === "encode" ? ["import httpx"] : [];
  return [
    ...imports,
    ...(imports.length ? [""] : []),
    ...plain,
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(address("v1"))}, api_key=${key})`,
    body,
  ].join("\n");
}

// JSON's strings and numbers are Python's too.
function literal(value) {
  return JSON.stringify(value);
}

function dictionary(fields) {
  const items = Object.entries(fields).map((pair) => pair.map(literal).join(": "));
  return `{${items.join(", ")}}`;
}

function pictureCall(request, model) {
  const own = {};
  const lines = [`    model=${literal(model)},`];
  for (const name of Object.keys(request.files)) {
    lines.push(`    ${name}=open(${literal(FILE_NAMES[name])}, "rb"),`);
  }
  for (const [name, value] of Object.entries(request.fields)) {
    if (OPENAI_FIELDS.includes(name)) lines.push(`    ${name}=${literal(value)},`);
    else own[name] = value;
  }
  if (Object.keys(own).length) lines.push(`    extra_body=${dictionary(own)},`);
  return [
    `made = client.images.${METHODS[request.kind]}(`,
    ...lines,
    ")",
    "for number, picture in enumerate(made.data):",
    '    with open(f"out-{number}.png", "wb") as file:',
    "        file.write(base64.b64decode(picture.b64_json))",
  ].join("\n");
}

function latentCall(request) {
  if (request.kind === "encode") {
    return [
      `with open(${literal(FILE_NAMES.image)}, "rb") as file:`,
      "    picture = base64.b64encode(file.read()).decode()",
      "answer = client.post(",
      '    "/latents/encode", cast_to=httpx.Response, body={"images": [picture]}',
      ")",
      "encoded = answer.json()",
      'print(encoded["shape"], answer.headers["x-rpiae-box"])',
      `with open(${literal(FILE_NAMES.latents)}, "w") as file:`,
      '    json.dump({"latents": encoded["latents"]}, file)',
    ].join("\n");
  }
  return [
    `with open(${literal(FILE_NAMES.latents)}) as file:`,
    "    latents = json.load(file)",
    "picture = client.post(",
    '    "/latents/decode",',
    "    cast_to=httpx.Response,",
    "    body=latents,",
    "    options={",
    `        "params": ${dictionary(request.query)},`,
    '        "headers": {"Accept": "image/png"},',
    "    },",
    ")",
    'with open("out-0.png", "wb") as file:',
    "    file.write(picture.content)",
  ].join("\n");
}
