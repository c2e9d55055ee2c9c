// Which videos are searched: a list with a field that narrows it, and what is chosen as chips.

import { byId, clock, count, el, shortName } from "/assets/basics.js";

/** Draw the filter. `choose(names)` is called with all chosen names. */
export function showFilter(videos, chosen, choose) {
  const box = byId("filter");
  const wasOpen = box.querySelector("details")?.open ?? false;
  const narrowed = box.querySelector("input[type=search]")?.value ?? "";
  const picked = new Set(chosen);
  const readable = videos.filter((video) => video.moments);
  const toggle = (name) => choose(picked.has(name) ? chosen.filter((one) => one !== name) : [...chosen, name]);
  const row = (video) => {
    const tick = el("input", { type: "checkbox", onchange: () => toggle(video.name) });
    tick.checked = picked.has(video.name);
    return el("label", { class: "row", "data-name": video.name.toLowerCase() }, tick,
      el("span", { title: video.name }, video.name), el("small", {}, clock(video.duration)));
  };
  const rows = el("div", { class: "rows" });
  const narrow = (text) => {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    for (const one of rows.children) one.hidden = !words.every((word) => one.dataset.name.includes(word));
  };
  const field = el("input", {
    type: "search", placeholder: `Find in ${count(readable.length, "video")}`, "aria-label": "Find a video by its name",
    oninput: (event) => narrow(event.target.value),
  });
  field.value = narrowed;
  const menu = el("details", { class: "menu", ontoggle: () => fill() },
    el("summary", {}, chosen.length ? count(chosen.length, "video") : "All videos"),
    el("div", { class: "sheet wide" }, field, rows));
  const fill = () => { // when somebody looks: a library may have thousands of videos
    if (rows.children.length || !menu.open) return;
    rows.append(...readable.map(row));
    narrow(field.value);
  };
  menu.open = wasOpen;
  fill();
  const chips = chosen.map((name) =>
    el("button", { class: "chip", title: `Do not search only ${name}`, onclick: () => toggle(name) }, `${shortName(name)} ×`));
  box.replaceChildren(...chips, menu);
}
