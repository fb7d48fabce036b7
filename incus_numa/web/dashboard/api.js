// Asks the daemon's API. Errors are those of RFC 9457: their detail is a sentence for people.

const TOKEN = "incus-numa-token";
let aheadMs = 0;

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `the daemon answered ${status}`);
    this.status = status;
    this.errors = (body.errors || []).map((one) => (typeof one === "string" ? one : one.detail));
  }
}

// A token that writes need over TCP; it is kept until the tab is closed.
export const token = {
  get: () => sessionStorage.getItem(TOKEN) || "",
  set: (text) => (text ? sessionStorage.setItem(TOKEN, text) : sessionStorage.removeItem(TOKEN)),
};

// The host's time, in seconds since 1970, by its last answer: the clock of who looks may be wrong.
export const now = () => (Date.now() + aheadMs) / 1000;

export const ask = async (path, method = "GET", body = undefined, more = {}) => (await askWhole(path, method, body, more)).data;

// The answer with its headers; `more` headers are sent.
export async function askWhole(path, method = "GET", body = undefined, more = {}) {
  const headers = { Accept: "application/json", ...more };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  const answer = await fetch(`v1/${path}`, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const text = await answer.text();
  const date = Date.parse(answer.headers.get("Date"));
  if (date) aheadMs = date - Date.now();
  let found = {};
  try {
    found = text ? JSON.parse(text) : {};
  } catch {
    throw new Problem(answer.status, { detail: "the answer is no JSON: is this incus-numa's address?" });
  }
  if (!answer.ok) throw new Problem(answer.status, found);
  return { data: found, headers: answer.headers };
}
