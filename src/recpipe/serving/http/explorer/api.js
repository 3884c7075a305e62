// Requests to the service that this page comes from.

const KEY = "recpipe-api-key"; // in the storage of this tab only
const PATIENCE = 3; // attempts at a busy service

export class ServiceError extends Error {
  constructor(status, body, retryAfter) {
    super(
      messageOf(body) ??
        (status ? `The service answered with status ${status}.` : "The service cannot be reached."),
    );
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

function messageOf(body) {
  const error = body?.error ?? body?.detail ?? body?.message;
  if (!error) return null;
  if (typeof error === "string") return error;
  if (Array.isArray(error)) return error.map((entry) => entry.msg ?? String(entry)).join("; ");
  const allowed = error.allowed ? `; allowed: ${[error.allowed].flat().map(String).join(", ")}` : "";
  return error.message
    ? `${error.message}${String(error.message).includes(String(error.allowed)) ? "" : allowed}`
    : null;
}

export function rememberKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function request(method, path, body, signal) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(0, null);
  }
  const answer = await response.json().catch(() => null);
  signal?.throwIfAborted(); // also where the body was cut off by it
  if (!response.ok)
    throw new ServiceError(response.status, answer, Number(response.headers.get("Retry-After")));
  return answer;
}

// Address of an item's picture. An image element sends no key, so that with one the picture is fetched here.
export async function pictureAddress(id) {
  const path = `/images/${encodeURIComponent(id)}`;
  const key = sessionStorage.getItem(KEY);
  if (!key) return path;
  const response = await fetch(path, { headers: { Authorization: `Bearer ${key}` } });
  if (!response.ok) throw new ServiceError(response.status, null);
  return URL.createObjectURL(await response.blob());
}

// A busy service (429, 503) is asked again after the time that it names.
async function patiently(method, path, body, signal) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await request(method, path, body, signal);
    } catch (error) {
      const isBusy = error instanceof ServiceError && (error.status === 429 || error.status === 503);
      if (!isBusy || attempt === PATIENCE) throw error;
      await new Promise((done) => setTimeout(done, 1000 * Math.min(Math.max(error.retryAfter || 0, 0.5), 5)));
      signal?.throwIfAborted();
    }
  }
}

const query = (values) => {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(values))
    for (const entry of [value].flat())
      if (entry !== null && entry !== undefined) parameters.append(name, entry);
  return parameters.toString();
};

export const api = {
  models: (signal) => patiently("GET", "/models", undefined, signal),
  isReady: () =>
    request("GET", "/ready").then(
      () => true,
      () => false,
    ),
  recommend: (body, signal) => patiently("POST", "/recommend", body, signal),
  explain: (body, signal) => patiently("POST", "/explain", body, signal),
  similar: (body, signal) => patiently("POST", "/similar", body, signal),
  items: (values, signal) => patiently("GET", `/items?${query(values)}`, undefined, signal),
  users: (values, signal) => patiently("GET", `/users?${query(values)}`, undefined, signal),
  user: (id, signal) => patiently("GET", `/users/${encodeURIComponent(id)}`, undefined, signal),
};
