// Strips of frames: loaded when they come into sight, a few at a time, so that a search never waits behind them.

import { address } from "/assets/basics.js";

const AT_ONCE = 4; // of the six connections that a browser opens to one server
export const FRAMES = 8;
const waiting = [];
let loading = 0;

function next() {
  while (loading < AT_ONCE && waiting.length) {
    const { image, source } = waiting.shift();
    if (!image.isConnected) continue; // its card has gone
    loading += 1;
    const done = () => {
      loading -= 1;
      next();
    };
    image.addEventListener("load", () => image.parentElement?.classList.add("shown"), { once: true });
    image.addEventListener("error", () => image.parentElement?.classList.add("broken"), { once: true });
    image.addEventListener("load", done, { once: true });
    image.addEventListener("error", done, { once: true });
    image.src = source;
  }
}

function load(image, source) {
  waiting.push({ image, source });
  next();
}

const seen = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      load(target, target.dataset.source);
    }
  },
  { rootMargin: "200px" },
);

const source = (video, start, stop, frames) =>
  address("/strip", { video: video.name, start: start.toFixed(3), stop: stop.toFixed(3), frames, v: video.version });

/** The pictures of a moment; CSS moves them while the card is pointed at or has the focus. */
export function strip(video, start, stop) {
  const box = document.createElement("span");
  box.className = "strip";
  const image = document.createElement("img");
  image.alt = "";
  image.decoding = "async";
  image.dataset.source = source(video, start, stop, FRAMES);
  box.append(image);
  seen.observe(image);
  return box;
}

/** One picture of a whole video, and eight as soon as somebody looks closer: they need eight seeks. */
export function poster(video) {
  const box = strip(video, 0, video.duration);
  const image = box.firstChild;
  const all = image.dataset.source;
  box.classList.add("one");
  image.dataset.source = source(video, 0, video.duration, 1);
  const closer = () => {
    const moving = new Image();
    moving.onload = () => {
      image.src = all;
      box.classList.remove("one");
    };
    moving.src = all;
  };
  box.look = () => {
    box.look = () => {};
    closer();
  };
  return box;
}
