// Requests to the service: addresses, the API key, and errors as the service words them.

const KEY = "rpiae-api-key";
let askForKey = async () => false;

// The page may be served under any path: every address is relative to its own.
export function address(path) {
  return new URL(path, document.baseURI).href;
}

export class ApiError extends Error {
  constructor({ message, status = 0, code = "", param = null, retryAfter = null, requestId = "" }) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter, requestId });
  }
}

export function storedKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function storeKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

// ask(message): resolves to true when there is another key to try.
export function onKeyNeeded(ask) {
  askForKey = ask;
}

// A response that is 2xx; whatever else comes is thrown as an ApiError, an abort as it is.
export async function send(path, { method = "GET", headers = {}, body, signal, keepalive } = {}) {
  for (;;) {
    const key = storedKey();
    const sent = key ? { ...headers, authorization: `Bearer ${key}` } : headers;
    let response;
    try {
      response = await fetch(address(path), { method, headers: sent, body, signal, keepalive });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError({
        message: "The service does not answer. Check that it is running, then try again.",
        code: "unreachable",
      });
    }
    if (response.ok) return response;
    const error = await errorOf(response);
    if (response.status !== 401 || !(await askForKey(error.message))) throw error;
  }
}

async function errorOf(response) {
  const about = {
    status: response.status,
    retryAfter: response.headers.get("retry-after"),
    requestId: response.headers.get("x-request-id") ?? "",
  };
  try {
    return new ApiError({ ...about, ...(await response.json()).error });
  } catch {
    // Not the service itself but something before it, a proxy for example.
    const message = `The answer was ${response.status} without a reason.`;
    return new ApiError({ ...about, message });
  }
}

export function streamError(fields) {
  return new ApiError(fields);
}

// The events of a stream, as { event, data } with data parsed.
export async function* serverSentEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const parsed = parseEvent(text.slice(0, end));
      text = text.slice(end + 2);
      if (parsed) yield parsed;
    }
  }
}

function parseEvent(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trim());
  }
  return data.length ? { event, data: JSON.parse(data.join("\n")) } : null;
}
