// Cards: the moments that were found, or the videos where nothing is looked for.

import { byId, clock, count, el, shortClock, shortName } from "/assets/basics.js";
import { poster, strip } from "/assets/strips.js";

const list = byId("cards");

/** A card for each moment. `to(hit)` is the address of its view. */
export function showHits(hits, videos, { to, open, like }) {
  const best = Math.max(...hits.map((hit) => hit.score), 1e-9);
  list.className = "hits";
  list.replaceChildren(
    ...hits.map((hit, place) => {
      const video = videos.get(hit.video);
      const times = `${shortClock(hit.start)} to ${shortClock(hit.stop)}`;
      const bar = el("i", { class: "score", title: `similarity ${hit.score.toFixed(3)}` });
      bar.style.width = `${Math.max(4, 100 * Math.max(hit.score, 0) / best)}%`;
      const picture = strip(video, hit.start, hit.stop);
      picture.append(el("b", { class: "when" }, shortClock(hit.start)), bar);
      return el(
        "li",
        {},
        el(
          "a",
          {
            class: "card",
            href: to(hit),
            "data-place": place,
            "aria-label": `${place + 1}: ${shortName(hit.video)}, ${times}, similarity ${hit.score.toFixed(2)}`,
            onclick: (event) => {
              if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
              event.preventDefault();
              open(hit);
            },
          },
          picture,
          el("span", { class: "label" }, el("span", { class: "what", title: hit.video }, shortName(hit.video)),
            el("span", { class: "number" }, hit.score.toFixed(2))),
        ),
        el(
          "button",
          { class: "alike", title: "More like this (m)", "aria-label": `More like ${times}`, onclick: () => like(hit) },
          "≈",
        ),
      );
    }),
  );
}

/** A card for each video that can be read; the others are listed with their reasons. */
export function showVideos(videos, { to, open }) {
  const readable = videos.filter((video) => video.moments);
  list.className = "videos";
  list.replaceChildren(
    ...readable.map((video, place) => {
      const picture = poster(video);
      picture.append(el("b", { class: "when" }, clock(video.duration)));
      return el(
        "li",
        {},
        el(
          "a",
          {
            class: "card",
            href: to(video),
            "data-place": place,
            "aria-label": `${shortName(video.name)}, ${clock(video.duration)}`,
            onpointerenter: () => picture.look(),
            onfocus: () => picture.look(),
            onclick: (event) => {
              if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
              event.preventDefault();
              open(video);
            },
          },
          picture,
          el("span", { class: "label" }, el("span", { class: "what", title: video.name }, shortName(video.name))),
        ),
      );
    }),
  );
  const partly = videos.filter((video) => video.reason);
  const unread = byId("unread");
  unread.hidden = !partly.length;
  unread.replaceChildren(
    el("h2", {}, `${count(partly.length, "video")} could not be read, or not whole`),
    el("ul", {}, ...partly.map((video) => el("li", {}, el("b", {}, video.name), `: ${video.reason}`))),
  );
}

export function clear() {
  list.replaceChildren();
  byId("unread").hidden = true;
}

const cards = () => [...list.querySelectorAll(".card")];

/** Mark the card that is being watched. */
export function mark(place) {
  for (const card of cards()) {
    if (Number(card.dataset.place) === place) card.setAttribute("aria-current", "true");
    else card.removeAttribute("aria-current");
  }
}

/** The card that the keys are at: the one with the focus, else the one that is watched. */
export function current() {
  const focused = document.activeElement?.closest?.(".card") ?? document.activeElement?.parentElement?.querySelector?.(":scope > .card");
  return focused ?? list.querySelector('[aria-current="true"]');
}

/** Move the focus by an arrow key. Returns the card that has it then. */
export function move(key) {
  const all = cards();
  if (!all.length) return null;
  const at = all.indexOf(current());
  if (at < 0) return focus(all[0]);
  const columns = getComputedStyle(list).gridTemplateColumns.split(" ").length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  return focus(all[Math.min(Math.max(at + by, 0), all.length - 1)]);
}

function focus(card) {
  card.focus();
  card.scrollIntoView({ block: "nearest" });
  return card;
}
