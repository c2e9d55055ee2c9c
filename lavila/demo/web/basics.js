// What every other module uses: elements, clocks, requests.

/** An element. Attributes that begin with "on" are listeners; `class` is its class. Children are nodes or text. */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function svg(name, attributes = {}) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Seconds as 1:02:03, or 2:03; with tenths where they are asked for. */
export function clock(second, tenths = false) {
  const total = tenths ? Math.round(second * 10) : Math.floor(second + 1e-6) * 10;
  const hours = Math.floor(total / 36000), minutes = Math.floor(total / 600) % 60, rest = Math.floor(total / 10) % 60;
  const two = (n) => String(n).padStart(2, "0");
  const text = hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
  return tenths ? `${text}.${total % 10}` : text;
}

/** The same, with tenths only where there are any. */
export const shortClock = (second) => clock(second, Math.round(second * 10) % 10 !== 0);

export const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

/** A file's name without its folders and without its ending. */
export const shortName = (name) => name.replace(/^.*\//, "").replace(/\.[a-z0-9]{2,4}$/i, "");

/** An address on this server; values may be lists. */
export function address(path, values) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== undefined && one !== null && one !== "") query.append(name, one);
    }
  }
  return `${path}?${query}`;
}

/** What the server answers. An error has the server's own words. */
export async function ask(path, values = {}, options = {}) {
  let response;
  try {
    response = await fetch(address(path, values), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Does its command still run?");
  }
  if (response.status === 401) location.reload(); // the token has expired: the page asks for it
  const found = await response.json().catch(() => ({ error: `The server answers ${response.status}.` }));
  if (!response.ok) throw new Error(found.error);
  return found;
}
