// The view as an address: a link, a reload, and back and forward bring the same view.
//
//   q=WORDS, or like=VIDEO from=S to=S   what is looked for
//   in=VIDEO (any number)                only in these videos
//   n=N                                  how many moments are listed, if not FIRST
//   v=VIDEO t=S                          what is watched, and from when
//   a=S b=S                              the stretch of its timeline that is marked
//   h=WORDS (any number)                 earlier queries, the latest first

export const FIRST = 48;
const EARLIER = 8;

const seconds = (text) => {
  const number = text === null || text === "" ? NaN : Number(text);
  return Number.isFinite(number) && number >= 0 ? number : null;
};

export function read(search = location.search) {
  const given = new URLSearchParams(search);
  const like = given.get("like"), from = seconds(given.get("from")), to = seconds(given.get("to"));
  const a = seconds(given.get("a")), b = seconds(given.get("b"));
  const n = Number(given.get("n"));
  return {
    q: given.get("q") ?? "",
    like: like && from !== null && to !== null && from < to ? { video: like, from, to } : null,
    in: given.getAll("in"),
    n: Number.isInteger(n) && n > 0 ? n : FIRST,
    v: given.get("v"),
    t: seconds(given.get("t")) ?? 0,
    region: a !== null && b !== null && a < b ? [a, b] : null,
    h: given.getAll("h").slice(0, EARLIER),
  };
}

const round = (second) => String(Math.round(second * 1000) / 1000);

export function write(view) {
  const made = new URLSearchParams();
  if (view.like) {
    made.set("like", view.like.video);
    made.set("from", round(view.like.from));
    made.set("to", round(view.like.to));
  } else if (view.q) made.set("q", view.q);
  for (const name of view.in) made.append("in", name);
  if (view.n !== FIRST) made.set("n", view.n);
  if (view.v) {
    made.set("v", view.v);
    made.set("t", round(view.t));
    if (view.region) {
      made.set("a", round(view.region[0]));
      made.set("b", round(view.region[1]));
    }
  }
  for (const words of view.h) made.append("h", words);
  const text = made.toString();
  return text ? `/?${text}` : "/";
}

/** What the search of a view asks of the server; null where nothing is looked for. */
export function wanted(view) {
  const only = { video: view.in, limit: view.n };
  if (view.like) return { like: view.like.video, from: view.like.from, to: view.like.to, ...only };
  return view.q ? { q: view.q, ...only } : null;
}

/** Earlier queries after `words` was asked: each once, the latest first. */
export function remembered(earlier, words) {
  return [words, ...earlier.filter((one) => one !== words)].slice(0, EARLIER);
}
