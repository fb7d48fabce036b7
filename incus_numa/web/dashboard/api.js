// Asks the daemon's API. Errors are those of RFC 9457: their detail is a sentence for people.

const TOKEN = "incus-numa-token";

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

export async function ask(path, method = "GET", body = undefined) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  const answer = await fetch(`v1/${path}`, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const text = await answer.text();
  let found = {};
  try {
    found = text ? JSON.parse(text) : {};
  } catch {
    throw new Problem(answer.status, { detail: "the answer is no JSON: is this incus-numa's address?" });
  }
  if (!answer.ok) throw new Problem(answer.status, found);
  return found;
}
