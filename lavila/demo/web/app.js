// The page: the address says what it shows, and everything that a hand does changes the address.

import { FIRST, read, remembered, wanted, write } from "/assets/address.js";
import { address, ask, byId, clock, count, el, shortClock, shortName } from "/assets/basics.js";
import * as cards from "/assets/cards.js";
import { showFilter } from "/assets/filter.js";
import { Player } from "/assets/player.js";

const MOST = 480;
const query = byId("query");
const videos = new Map();
let library, player, view;
let hits = [], found = ""; // what is listed, and the search that found it
let searching = null;
let turn = 0; // counts the views, so that what comes late does not touch the next one

const go = (changes) => show({ ...view, ...changes }, { push: true });

/** Show a view. push: as a new entry of the browser's history. play: at once. */
async function show(next, { push = false, play = false } = {}) {
  view = next;
  const mine = ++turn;
  if (push) history.pushState(null, "", write(view));
  query.value = view.q;
  document.title = title();
  drawTries();
  showFilter(library.videos, view.in, (names) => go({ in: names, n: FIRST }));
  const listed = list();
  if (view.v && videos.has(view.v)) {
    const region = view.region;
    const shown = player.show(videos.get(view.v), view.t, { play });
    if (region) player.mark(region, false);
    await Promise.all([listed, shown]);
    if (mine === turn) drawCurve();
  } else {
    player.close();
    await listed;
    if (view.v && mine === turn) trouble(`No video ${view.v} here. It may have another name now, or be left out.`);
  }
  markWatched();
}

function title() {
  if (view.like) return `Like ${clock(view.like.from)} of ${shortName(view.like.video)}`;
  return view.q || (view.v ? shortName(view.v) : "Ask your videos");
}

/** List the hits of the view, or the videos. What is listed already stays. */
async function list() {
  const asked = wanted(view);
  const key = JSON.stringify(asked ?? { videos: view.in });
  if (key === found) return;
  found = key;
  searching?.abort();
  trouble("");
  byId("export").hidden = byId("more").hidden = true;
  if (!asked) {
    hits = [];
    const listed = view.in.length ? library.videos.filter((video) => view.in.includes(video.name)) : library.videos;
    cards.showVideos(listed, { to: (video) => write({ ...view, v: video.name, t: 0, region: null }), open: (video) => watch(video.name, 0) });
    const readable = listed.filter((video) => video.moments);
    const hours = readable.reduce((sum, video) => sum + video.duration, 0);
    status(`${count(readable.length, "video")}, ${clock(hours)} in all`);
    return;
  }
  searching = new AbortController();
  byId("results").setAttribute("aria-busy", "true");
  try {
    const answer = await ask("/api/search", asked, { signal: searching.signal });
    hits = answer.hits;
    cards.clear();
    cards.showHits(hits, videos, {
      to: (hit) => write({ ...view, v: hit.video, t: hit.start, region: null }),
      open: (hit) => watch(hit.video, hit.start),
      like: (hit) => likeThis(hit.video, hit.start, hit.stop),
    });
    const within = new Set(hits.map((hit) => hit.video)).size;
    const what = view.like ? ` like ${shortClock(view.like.from)} to ${shortClock(view.like.to)} of ${shortName(view.like.video)}` : "";
    status(hits.length ? `${count(hits.length, "moment")}${what} in ${count(within, "video")}` : "Nothing to compare in these videos.");
    byId("more").hidden = hits.length < view.n || view.n >= MOST;
    drawExport(asked);
  } catch (error) {
    if (error.name === "AbortError") return;
    hits = [];
    found = "";
    cards.clear();
    status("");
    trouble(error.message);
  } finally {
    byId("results").removeAttribute("aria-busy");
  }
}

/** The similarity curve of the watched video, drawn to the scale of the best hit. */
async function drawCurve() {
  const name = player.name, asked = wanted(view);
  const own = hits.filter((hit) => hit.video === name);
  const { duration } = videos.get(name);
  if (!asked) {
    player.timeline.show({ duration, curve: null, hits: [], range: [0, 1] });
    return;
  }
  try {
    const curve = await ask("/api/curve", { ...asked, video: undefined, of: name });
    if (player.name !== name || JSON.stringify(wanted(view)) !== JSON.stringify(asked)) return;
    const best = Math.max(hits[0]?.score ?? -1, ...curve.similarity);
    player.timeline.show({ duration, curve, hits: own, range: [Math.min(...curve.similarity), best] });
  } catch (error) {
    trouble(error.message);
  }
}

function watch(name, second) {
  show({ ...view, v: name, t: second, region: null }, { push: true, play: true });
}

function likeThis(name, from, to) {
  go({ q: "", like: { video: name, from, to }, n: FIRST });
}

function markWatched() {
  const near = (hit) => hit.video === view.v && Math.abs(hit.start - view.t) < 0.05;
  cards.mark(wanted(view) ? hits.findIndex(near) : library.videos.filter((video) => video.moments).findIndex((video) => video.name === view.v));
}

/** Keep the present second or stretch in the address, without a new entry of the history. */
function keep(changes) {
  if (!player.open || view.v !== player.name) return;
  view = { ...view, ...changes };
  history.replaceState(null, "", write(view));
}

function drawTries() {
  const nav = byId("tries");
  const chip = (words) => el("a", { class: "chip", href: write({ ...view, q: words, like: null, n: FIRST }), onclick: (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    search(words);
  } }, words);
  const earlier = view.h.filter((words) => words !== view.q);
  const rest = library.suggestions.filter((words) => words !== view.q && !earlier.includes(words));
  nav.replaceChildren(
    ...(earlier.length ? [el("span", {}, "Earlier"), ...earlier.map(chip)] : []),
    ...(rest.length ? [el("span", {}, "Try"), ...rest.map(chip)] : []),
  );
}

function drawExport(asked) {
  const menu = byId("export");
  menu.hidden = !hits.length;
  const kinds = { csv: "CSV, for spreadsheets", json: "JSON", annotations: "Annotations, for tools/shard_videos.py" };
  menu.querySelector(".sheet").replaceChildren(
    ...Object.entries(kinds).map(([format, words]) => el("a", { href: address("/export", { ...asked, format }), download: true, "data-format": format }, words)),
  );
}

function search(words) {
  const q = words.trim().replace(/\s+/g, " ");
  if (!q) return go({ q: "", like: null, n: FIRST });
  return go({ q, like: null, n: FIRST, h: remembered(view.h, q) });
}

const status = (text) => { byId("status").textContent = text; };

function trouble(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = !text;
}

function close() {
  const place = cards.current();
  go({ v: null, t: 0, region: null });
  place?.focus();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
  const at = event.target;
  const menu = at.closest?.("details.menu[open]");
  if (event.key === "Escape" && menu) {
    menu.open = false;
    menu.querySelector("summary").focus();
    return;
  }
  if (at.matches?.("input, textarea, select") && at.type !== "checkbox") {
    if (event.key === "Escape") at.blur();
    return;
  }
  if (event.key === "/") query.select();
  else if (event.key === "?") byId("keys").showModal();
  else if (event.key.startsWith("Arrow") && !at.matches?.("video, summary") && !menu) step(event.key);
  else if (event.key === " " && !at.matches?.("button, summary, video, input, a:not(.card)")) {
    if (player.open) player.toggle();
    else cards.current()?.click();
  } else if (event.key === "m") {
    if (player.open) likeThis(player.name, ...player.stretch);
    else cards.current()?.parentElement.querySelector(".alike")?.click();
  } else if (event.key === "[" && player.open) player.markEnd("start");
  else if (event.key === "]" && player.open) player.markEnd("stop");
  else if (event.key === "Escape" && player.open) {
    if (player.region) player.mark(null);
    else close();
  } else return;
  event.preventDefault();
}

/** An arrow key: to another card; while a video is watched, what the card stands for is shown at once. */
function step(key) {
  const card = cards.move(key);
  if (card && player.open && card.getAttribute("aria-current") !== "true") card.click();
}

function listen() {
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    search(query.value);
    query.blur();
  });
  byId("home").addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go({ ...read(""), h: view.h });
  });
  byId("help").addEventListener("click", () => byId("keys").showModal());
  byId("close").addEventListener("click", close);
  byId("more").addEventListener("click", () => go({ n: Math.min(2 * view.n, MOST) }));
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
  window.addEventListener("popstate", () => show(read()));
}

async function start() {
  try {
    library = await ask("/api/library");
  } catch (error) {
    trouble(error.message);
    return;
  }
  for (const video of library.videos) videos.set(video.name, video);
  byId("about").textContent = `${count(library.moments, "moment")} of ${library.window} s in ${count(library.videos.filter((video) => video.moments).length, "video")}. ` +
    `Compared by ${library.model}, on this machine. A model can be wrong.`;
  player = new Player({
    like: (from, to) => likeThis(player.name, from, to),
    region: (region) => keep({ region }),
    moved: (t) => keep({ t }),
    canNarrate: () => library.narrator,
    window: library.window,
  });
  listen();
  await show(read());
  performance.mark("listed"); // for benchmarks/demo
  document.body.classList.add("ready");
}

start();
